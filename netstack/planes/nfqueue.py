"""The `nfqueue` plane: IP packets back to back on two one-way streams, as the raw proxies of others speak.

Each end connects for what it sends and listens for what it receives; there is no hello. The parent
captures with NFQUEUE and injects through a raw socket; the enclave has the parent's own address on its
TUN device, which captures after NAT and injects before it. IPv4 only; one packet per system call.
"""

import errno
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from netstack import vsock
from netstack.machine.layout import INJECTED_MARK
from netstack.packets.packet import MAX_PACKET, Malformed, length_in_stream, parse
from netstack.packets.policy import Guard, Rules
from netstack.planes.link import BACKOFF_FIRST_S, BACKOFF_MOST_S
from netstack.planes.tun import TunGone, open_queue

log = structlog.get_logger()
QUEUE_LENGTH = 4_096
BATCH_BYTES = 256 * 1024
_IP_HDRINCL = socket.IP_HDRINCL
_KERNEL_DROPS = frozenset(
    {
        errno.EINVAL, errno.EIO, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.ENETDOWN,
        errno.EPERM, errno.EMSGSIZE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES,
    }
)  # fmt: skip


class End(Protocol):
    """Where packets of this machine are taken from, and put."""

    async def capture(self, room: bytearray) -> int:
        """Wait for packets and append them, up to about `BATCH_BYTES`. Returns how many."""
        ...

    def inject(self, packet: memoryview) -> None:
        """Raises OSError; what the kernel refuses is counted, all else ends the plane."""
        ...

    def close(self) -> None:
        """Let go of devices and sockets."""
        ...


class TunEnd:
    """The enclave's: a TUN device without offloads. Raises `TunGone` when it is deleted."""

    def __init__(self, device: str) -> None:
        self._fd = open_queue(device, offload=False)

    async def capture(self, room: bytearray) -> int:
        await trio.lowlevel.wait_readable(self._fd)
        count = 0
        try:
            while len(room) < BATCH_BYTES:
                packet = os.read(self._fd, MAX_PACKET)
                if packet[0] >> 4 == 4:  # the kernel itself looks for IPv6 routers
                    room += packet
                    count += 1
        except BlockingIOError:
            pass
        except OSError as error:
            raise TunGone(str(error.strerror)) from error
        return count

    def inject(self, packet: memoryview) -> None:
        try:
            os.write(self._fd, packet)
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise TunGone(str(error.strerror)) from error
            raise

    def close(self) -> None:
        os.close(self._fd)


class QueueEnd:
    """The parent's: NFQUEUE in, a raw socket out."""

    def __init__(self, queue_number: int) -> None:
        # Only a machine with this plane has libnetfilter_queue.
        from netfilterqueue import NetfilterQueue

        self._captured: list[bytes] = []
        self._queue = NetfilterQueue()
        self._queue.bind(
            queue_number, self._take, QUEUE_LENGTH, range=MAX_PACKET, sock_len=4 << 20
        )
        self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._raw.setsockopt(socket.IPPROTO_IP, _IP_HDRINCL, 1)
        self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, INJECTED_MARK)
        self._raw.setblocking(False)

    def _take(self, packet: "_Queued") -> None:
        self._captured.append(packet.get_payload())
        packet.drop()  # this machine's own stack must not answer it

    async def capture(self, room: bytearray) -> int:
        await trio.lowlevel.wait_readable(self._queue.get_fd())
        self._queue.run(block=False)
        count = len(self._captured)
        room += b"".join(self._captured)
        self._captured.clear()
        return count

    def inject(self, packet: memoryview) -> None:
        self._raw.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))

    def close(self) -> None:
        self._queue.unbind()
        self._raw.close()


class _Queued(Protocol):
    """What NetfilterQueue hands to its callback."""

    def get_payload(self) -> bytes: ...
    def drop(self) -> None: ...


@dataclass(frozen=True)
class RawConfig:
    """Where the peer listens, and where we do; what the peer may send."""

    peer: vsock.Address
    own: vsock.Address
    rules: Rules
    peer_cid: int | None = None


class RawLink:
    """`run` until cancelled. Either stream may break and come back without the other."""

    def __init__(
        self, config: RawConfig, open_end: Callable[[], End], repair: Callable[[], Awaitable[None]]
    ) -> None:
        self._config = config
        self._open_end = open_end
        self._repair = repair
        self._guard = Guard(config.rules)
        self._count: Counter[str] = Counter()
        self.up = trio.Event()
        self.connected = 0

    def stats(self) -> dict[str, object]:
        """Packets and bytes each way, and what was dropped."""
        return {"connected": self.connected, **self._count}

    def drain(self) -> None:
        """Nothing waits here: each packet is sent as it is captured."""
        self.connected = 0

    async def run(self) -> None:
        """Raises OSError when the device or the queue cannot be had."""
        listener = await vsock.listen(self._config.own)
        while True:
            try:
                await self._run_on(listener, self._open_end())
            except* TunGone as gone:
                log.warning("raw.device", reason=str(gone.exceptions[0]))
            await self._repair()

    async def _run_on(self, listener: trio.socket.SocketType, end: End) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_forever, end)
                nursery.start_soon(self._receive_forever, end, listener)
        finally:
            end.close()

    async def _send_forever(self, end: End) -> None:
        backoff_s = BACKOFF_FIRST_S
        while True:
            try:
                with await vsock.connect(self._config.peer) as sock:
                    backoff_s = BACKOFF_FIRST_S
                    self.connected = 1
                    self.up.set()
                    log.info("raw.sending", to=str(self._config.peer))
                    await self._send(end, sock)
            except (OSError, trio.TooSlowError) as error:
                log.info("raw.waiting", to=str(self._config.peer), reason=str(error))
            await trio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MOST_S)

    async def _send(self, end: End, sock: trio.socket.SocketType) -> None:
        """A slow peer stops the capture: the kernel's queue fills and drops, ours never grows."""
        room = bytearray()
        while True:
            self._count["packets_sent"] += await end.capture(room)
            self._count["bytes_sent"] += len(room)
            with memoryview(room) as view:
                sent = 0
                while sent < len(room):
                    sent += await sock.send(view[sent:])
            room.clear()

    async def _receive_forever(self, end: End, listener: trio.socket.SocketType) -> None:
        async with trio.open_nursery() as nursery:
            current = trio.CancelScope()
            async for sock in vsock.accept_forever(listener, self._config.peer_cid):
                current.cancel()  # the newest connection wins
                current = trio.CancelScope()
                nursery.start_soon(self._receive, end, sock, current)

    async def _receive(
        self, end: End, sock: trio.socket.SocketType, scope: trio.CancelScope
    ) -> None:
        buffer = bytearray(BATCH_BYTES + MAX_PACKET)
        view = memoryview(buffer)
        have = 0
        with scope, sock:
            try:
                while received := await sock.recv_into(view[have:]):
                    have += received
                    used = self._deliver(end, view, have)
                    buffer[: have - used] = view[used:have]
                    have -= used
                log.info("raw.closed", bytes_left=have)
            except Malformed as error:
                log.warning("raw.malformed", reason=str(error))
            except ConnectionError as error:
                log.info("raw.broken", reason=str(error))

    def _deliver(self, end: End, view: memoryview, have: int) -> int:
        """All whole packets, in order. Returns how many bytes they were. Raises `Malformed`."""
        at = 0
        while (length := length_in_stream(view, at, have)) is not None and at + length <= have:
            verdict = self._guard.judge(parse(view, at, at + length))
            if verdict:
                self._count[verdict.name.lower()] += 1
            else:
                self._inject(end, view[at : at + length])
            at += length
        return at

    def _inject(self, end: End, packet: memoryview) -> None:
        try:
            end.inject(packet)
            self._count["packets_received"] += 1
        except OSError as error:
            if error.errno not in _KERNEL_DROPS:
                raise
            self._count["refused_by_kernel"] += 1
