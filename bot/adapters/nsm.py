"""The Nitro Security Module: ``/dev/nsm`` by ioctl, or the development simulator on a Unix socket.

The driver makes the device readable and writable for everybody, and asks no capability (Linux 6.12). Whoever
can open it gets documents with our measurements and *his* public key in them. So we refuse to start
unless only we can open it; the init process must have closed it before any tenant's process runs.
"""

import array
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from netstack.vsock import Address, connect, parse_address
from nips.errors import BadInput
from nips.tee.nsm import (
    MAX_RESPONSE_BYTES,
    NsmDescription,
    NsmRequest,
    attestation_request,
    encode_request,
    open_bytes_untrusted,
    open_description_untrusted,
    open_response_untrusted,
)

# _IOWR(0x0A, 0, 32) of linux/nsm.h; struct nsm_raw is two iovecs of native 64-bit words.
NSM_IOCTL_RAW = 0xC0200A00
_NSM_RAW = struct.Struct("=QQQQ")
LENGTH = struct.Struct(">I")
# The driver gives up after 120 s.
ANSWER_S = 130
T = TypeVar("T")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class NsmUnusable(Exception):
    """There is no module to attest us, or others could use it as well; the message says what to do."""


class Transport(Protocol):
    """Carries one request to the module and its response back, bytes as they are."""

    async def call(self, request: bytes) -> bytes: ...


class NsmDevice:
    """The kernel's driver. It handles one request at a time and blocks meanwhile: a thread waits."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._one_at_a_time = trio.CapacityLimiter(1)

    async def call(self, request: bytes) -> bytes:
        return await trio.to_thread.run_sync(self._ioctl, request, limiter=self._one_at_a_time)

    def _ioctl(self, request: bytes) -> bytes:
        sent = array.array("B", request)
        # A shorter buffer would truncate the response silently.
        answer = array.array("B", bytes(MAX_RESPONSE_BYTES))
        raw = bytearray(
            _NSM_RAW.pack(sent.buffer_info()[0], len(sent), answer.buffer_info()[0], len(answer))
        )
        fcntl.ioctl(self._fd, NSM_IOCTL_RAW, raw, True)
        # The driver writes the response's length back.
        length = _NSM_RAW.unpack(raw)[3]
        return answer[:length].tobytes()


class NsmSocket:
    """The simulator: each message is preceded by its length in four bytes, one request a connection."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def call(self, request: bytes) -> bytes:
        with trio.fail_after(ANSWER_S):
            async with trio.SocketStream(await connect(self._address)) as stream:
                await stream.send_all(LENGTH.pack(len(request)) + request)
                return await read_message(stream)


async def read_message(stream: trio.abc.ReceiveStream) -> bytes:
    """A length and so many bytes. Raises `BadInput` for more than a module ever says, or less."""
    (length,) = LENGTH.unpack(await _read(stream, LENGTH.size))
    if length > MAX_RESPONSE_BYTES:
        raise BadInput("the module's message is too long")
    return await _read(stream, length)


async def _read(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    got = b""
    while len(got) < count:
        part = await stream.receive_some(count - len(got))
        if not part:
            raise BadInput("the module's message ends too early")
        got += part
    return got


def open_transport(path: Path) -> Transport:
    """The device or the simulator's socket. Raises `NsmUnusable`."""
    try:
        found = path.stat()
    except OSError as error:
        raise NsmUnusable(f"no Nitro Security Module at {path}: {error.strerror}") from error
    if found.st_mode & _OTHERS or found.st_uid != os.geteuid():
        raise NsmUnusable(
            f"{path} could be opened by other users, who could be attested in our place: "
            f"chown it to the server's user and chmod it to 600 before anything else runs"
        )
    if stat.S_ISSOCK(found.st_mode):
        return NsmSocket(parse_address(f"unix:{path.absolute()}"))
    if not stat.S_ISCHR(found.st_mode):
        raise NsmUnusable(f"{path} is neither a device nor a socket")
    try:
        return NsmDevice(path)
    except OSError as error:
        raise NsmUnusable(f"cannot open {path}: {error.strerror}") from error


class NsmAttester:
    """`handlers.ports.Attester`, and the module's other operations.

    Raises `NsmRefused` when the module says no, `NsmUnusable` when it does not answer or talks nonsense.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def document(
        self, *, public_key: bytes, nonce: bytes | None = None, user_data: bytes | None = None
    ) -> bytes:
        return await self._bytes(attestation_request(public_key, user_data, nonce), "document")

    async def describe(self) -> NsmDescription:
        return await self._ask(NsmRequest("DescribeNSM", {}), open_description_untrusted)

    async def random(self) -> bytes:
        """256 bytes from the hypervisor's generator."""
        return await self._bytes(NsmRequest("GetRandom", {}), "random")

    async def pcr(self, index: int) -> tuple[bytes, bool]:
        """A register's value, and whether it is locked."""

        def read(raw: bytes) -> tuple[bytes, bool]:
            told = open_response_untrusted("DescribePCR", raw)
            return open_bytes_untrusted("DescribePCR", "data", raw), told.get("lock") is True

        return await self._ask(NsmRequest("DescribePCR", {"index": index}), read)

    async def extend_pcr(self, index: int, data: bytes) -> bytes:
        """SHA384(old ‖ data); 16 to 31 are free for us until they are locked."""
        return await self._bytes(NsmRequest("ExtendPCR", {"index": index, "data": data}), "data")

    async def lock_pcr(self, index: int) -> None:
        """Only locked registers stand in documents."""
        await self._ask(
            NsmRequest("LockPCR", {"index": index}),
            lambda raw: open_response_untrusted("LockPCR", raw),
        )

    async def _bytes(self, request: NsmRequest, field: str) -> bytes:
        return await self._ask(
            request, lambda raw: open_bytes_untrusted(request.operation, field, raw)
        )

    async def _ask(self, request: NsmRequest, read: Callable[[bytes], T]) -> T:
        try:
            return read(await self._transport.call(encode_request(request)))
        except (OSError, BadInput, trio.TooSlowError) as error:
            why = str(error) or "it does not answer"
            raise NsmUnusable(f"{request.operation} by the security module: {why}") from error
