"""Stream addresses as text, and sockets for them: ``vsock:3:1081``, ``vsock:any:1081``, ``unix:/path``, ``tcp:host:port``.

An enclave has AF_VSOCK alone; Unix streams stand in for it where there is none.
"""

import os
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

log = structlog.get_logger()
# linux/vm_sockets.h. CPython takes only 64-bit integers for options of this level.
_SO_VM_BUFFER_SIZE, _SO_VM_BUFFER_MAX_SIZE = 0, 2
BUFFER_BYTES = 1 << 20
CONNECT_S = 5.0
BACKLOG = 128
ACCEPT_AGAIN_S = 0.1


class BadAddress(ValueError):
    """The message says what an address looks like."""


@dataclass(frozen=True)
class Address:
    """Where a stream goes: an address family, and what the kernel wants to know for it."""

    family: int
    where: str | tuple[int, int] | tuple[str, int]
    text: str

    def __str__(self) -> str:
        return self.text


def parse_address(text: str) -> Address:
    """Raises `BadAddress`."""
    kind, _, rest = text.partition(":")
    host, _, port = rest.rpartition(":")
    if kind == "unix" and rest.startswith("/"):
        return Address(socket.AF_UNIX, rest, text)
    if kind == "vsock" and port.isdecimal() and (host == "any" or host.isdecimal()):
        cid = socket.VMADDR_CID_ANY if host == "any" else int(host)
        return Address(socket.AF_VSOCK, (cid, _bounded(port, 0xFFFF_FFFE, text)), text)
    if kind == "tcp" and host and port.isdecimal():
        return Address(socket.AF_INET, (host, _bounded(port, 0xFFFF, text)), text)
    raise BadAddress(f"{text!r} is no address; write vsock:CID:PORT, unix:/path or tcp:host:port")


def _bounded(number: str, most: int, text: str) -> int:
    if not 0 < int(number) <= most:
        raise BadAddress(f"{text!r}: the port is not in 1..{most}")
    return int(number)


async def connect(address: Address) -> trio.socket.SocketType:
    """A connected stream. Raises OSError, `trio.TooSlowError`."""
    sock = trio.socket.socket(address.family, socket.SOCK_STREAM)
    try:
        with trio.fail_after(CONNECT_S):
            await sock.connect(address.where)
    except BaseException:
        sock.close()
        raise
    return sock


async def listen(address: Address) -> trio.socket.SocketType:
    """A listening socket. Raises OSError."""
    if isinstance(address.where, str):
        _make_way(Path(address.where))
    sock = trio.socket.socket(address.family, socket.SOCK_STREAM)
    try:
        if address.family == socket.AF_INET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await sock.bind(address.where)
        if isinstance(address.where, str):
            os.chmod(address.where, 0o600)  # noqa: PTH101 - no path that would block
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _make_way(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)


async def accept_forever(
    listener: trio.socket.SocketType, peer_cid: int | None
) -> AsyncIterator[trio.socket.SocketType]:
    """Every connection, but none from another virtual machine than ``peer_cid``."""
    while True:
        try:
            sock, peer = await listener.accept()
        except OSError as error:
            # Out of descriptors, or reset before it was accepted: the next one may do better.
            log.warning("stream.accept", reason=error.strerror)
            await trio.sleep(ACCEPT_AGAIN_S)
            continue
        if listener.family == socket.AF_VSOCK and peer_cid is not None and peer[0] != peer_cid:
            log.warning("stream.refused", cid=peer[0])
            sock.close()
        else:
            yield sock


async def receive_exactly(sock: trio.socket.SocketType, size: int) -> bytes:
    """Raises EOFError when the peer closes before."""
    data = b""
    while len(data) < size:
        chunk = await sock.recv(size - len(data))
        if not chunk:
            raise EOFError(f"the peer closed after {len(data)} of {size} bytes")
        data += chunk
    return data


def make_blocking(sock: trio.socket.SocketType, silence_s: float) -> socket.socket:
    """The same connection for a process that blocks; both directions fail after ``silence_s``."""
    plain = socket.socket(fileno=socket.dup(sock.fileno()))
    plain.setblocking(True)
    _widen(plain)
    # An AF_VSOCK object takes no struct: the option is set through an object that believes in Unix.
    seconds, rest = divmod(silence_s, 1)
    timeval = struct.pack("ll", int(seconds), int(rest * 1e6))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, socket.dup(plain.fileno())) as any_:
        any_.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        any_.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    return plain


def _widen(sock: socket.socket) -> None:
    if sock.family == socket.AF_VSOCK:
        for option in (_SO_VM_BUFFER_MAX_SIZE, _SO_VM_BUFFER_SIZE):
            sock.setsockopt(socket.AF_VSOCK, option, BUFFER_BYTES)
    else:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
