"""The `tun` plane's supervision, in trio: connect or accept, hello, two pumps per queue, reconnect.

The enclave connects, the parent accepts. The newest connection of a queue wins: after half a break the
peer comes back while the old connection still looks alive.
"""

import math
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import structlog
import trio

from netstack import vsock
from netstack.child import Child
from netstack.packets.framing import HELLO_SIZE, Hello, decode_hello
from netstack.packets.packet import Malformed
from netstack.packets.policy import Rules
from netstack.planes import counters, tun
from netstack.planes.pump import TUN_GONE, Job

log = structlog.get_logger()
HELLO_S = 5.0
BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.05, 2.0
DRAIN_S = 2.0
MOST_STRANGERS = 16
SESSION_S = 0.05


@dataclass(frozen=True)
class LinkConfig:
    """One data plane: the device, where the peer is, and what it may send."""

    device: str
    address: vsock.Address
    rules: Rules
    mtu: int
    # The parent listens, the enclave connects.
    listens: bool
    queues: int = 1
    peer_cid: int | None = None
    heartbeat_s: float = 5.0
    # Longer than two heartbeats: one may be late.
    silence_s: float = 15.0


@dataclass
class _Queue:
    """A queue of the device, and the session that runs on it."""

    number: int
    inbound: counters.Counters
    outbound: counters.Counters
    fd: int = -1
    offloads: int = 0
    session: trio.CancelScope | None = None
    ended: trio.Event = field(default_factory=trio.Event)
    began_at: float = -math.inf


class Link:
    """`run` until cancelled; `drain` lets sessions finish."""

    def __init__(self, config: LinkConfig, repair: Callable[[], Awaitable[None]]) -> None:
        """``repair`` applies the machine's network again: the device may have been deleted."""
        self._config = config
        self._repair = repair
        self._queues = [
            _Queue(n, counters.create("inbound"), counters.create("outbound"))
            for n in range(config.queues)
        ]
        self._draining = trio.Event()
        self._repairing = trio.Lock()
        self._strangers = trio.CapacityLimiter(MOST_STRANGERS)
        self.up = trio.Event()
        self.reconnects = 0
        self._devices = 0  # how many we have had

    def _open(self) -> None:
        """Take the device's queues. Raises `tun.TunGone`."""
        for queue in self._queues:
            queue.fd = tun.open_queue(self._config.device, many=self._config.queues > 1)
            queue.offloads = tun.best_offloads(queue.fd)
        self._devices += 1

    def _close(self) -> None:
        """Give them back."""
        for queue in self._queues:
            if queue.fd >= 0:
                os.close(queue.fd)
            queue.fd = -1

    def drain(self) -> None:
        """No new sessions; those that run send what waits at the device and close."""
        self._draining.set()

    @property
    def connected(self) -> int:
        """How many queues have a session."""
        return sum(queue.session is not None for queue in self._queues)

    def stats(self) -> dict[str, object]:
        """Counters, summed over queues, and how many queues are connected."""
        return {
            "connected": self.connected,
            "queues": self._config.queues,
            "reconnects": self.reconnects,
            "inbound": _sum([q.inbound for q in self._queues]),
            "outbound": _sum([q.outbound for q in self._queues]),
        }

    async def run(self) -> None:
        """Until cancelled. Raises `tun.TunGone`, OSError when it cannot even begin."""
        self._open()
        try:
            await (self._accept_all() if self._config.listens else self._connect_all())
        finally:
            self._close()

    async def _connect_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(self._config.queues):
                nursery.start_soon(self._keep_connected, number)

    async def _accept_all(self) -> None:
        listener = await vsock.listen(self._config.address)
        async with trio.open_nursery() as nursery:
            async for sock in vsock.accept_forever(listener, self._config.peer_cid):
                nursery.start_soon(self._serve, sock)

    async def _keep_connected(self, number: int) -> None:
        backoff_s = BACKOFF_FIRST_S
        while not self._draining.is_set():
            try:
                sock = await vsock.connect(self._config.address)
                if await self._serve(sock, expect=number):
                    backoff_s = BACKOFF_FIRST_S
            except (OSError, trio.TooSlowError) as error:
                log.info("link.waiting", address=str(self._config.address), reason=_say(error))
            await trio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MOST_S)

    async def _serve(self, sock: trio.socket.SocketType, expect: int | None = None) -> bool:
        """One connection from hello to end; whether it came to pump."""
        with sock:
            try:
                hello = await self._admit(sock, expect)
            except (OSError, EOFError, Malformed, trio.TooSlowError, trio.WouldBlock) as error:
                log.warning("link.refused", reason=_say(error))
                return False
            device = self._devices
            try:
                await self._run_session(self._queues[hello.queue], hello, sock)
            except tun.TunGone as error:
                log.warning("link.ended", reason=str(error))
                await self._recover(device)
            except OSError as error:  # no descriptors, no processes: this connection's fault alone
                log.warning("link.ended", reason=_say(error))
            return True

    async def _admit(self, sock: trio.socket.SocketType, expect: int | None) -> Hello:
        """Hellos both ways, and the place of whoever was there.

        Few strangers at once: who connects and says nothing holds no more, nor do any number of hellos.
        """
        self._strangers.acquire_on_behalf_of_nowait(sock)
        try:
            with trio.fail_after(HELLO_S):
                hello = await self._exchange(sock, expect)
            await self._take_over(self._queues[hello.queue])
        finally:
            self._strangers.release_on_behalf_of(sock)
        return hello

    async def _exchange(self, sock: trio.socket.SocketType, expect: int | None) -> Hello:
        offloads = self._queues[expect or 0].offloads
        ours = Hello(expect or 0, self._config.mtu, offloads)
        if expect is not None:
            await sock.send(ours.encode())
        received = await vsock.receive_exactly(sock, HELLO_SIZE)
        theirs = decode_hello(received, queues=self._config.queues)
        if expect is None:
            await sock.send(replace(ours, queue=theirs.queue).encode())
        elif theirs.queue != expect:
            raise Malformed(f"the peer speaks of queue {theirs.queue}, we of {expect}")
        return theirs

    async def _take_over(self, queue: _Queue) -> None:
        """The newest wins, but each has a moment: a session costs two processes."""
        await trio.sleep_until(queue.began_at + SESSION_S)
        while queue.session is not None:
            queue.session.cancel()
            await queue.ended.wait()
        queue.ended, queue.session = trio.Event(), trio.CancelScope()
        queue.began_at = trio.current_time()

    async def _run_session(
        self, queue: _Queue, hello: Hello, sock: trio.socket.SocketType
    ) -> None:
        """Raises `tun.TunGone`, OSError."""
        scope, ended = queue.session, queue.ended
        assert scope is not None  # noqa: S101 - taken over just before
        try:
            with scope:
                if queue.fd < 0:
                    raise tun.TunGone("the device is being repaired")
                tun.set_offloads(queue.fd, queue.offloads & hello.offloads)
                self.reconnects += self.up.is_set()
                self.up.set()
                log.info("link.up", queue=queue.number, mtu=hello.mtu)
                reason = await self._pump(queue, sock, coalesce=bool(hello.offloads & tun.USO4))
                log.info("link.down", queue=queue.number, reason=reason)
                if reason.startswith(TUN_GONE):
                    raise tun.TunGone(reason)
        finally:
            queue.session = None
            ended.set()

    async def _pump(self, queue: _Queue, sock: trio.socket.SocketType, *, coalesce: bool) -> str:
        """Both pumps until one ends. Returns its reason."""
        config = self._config
        pumps: dict[str, Child] = {}
        with vsock.make_blocking(sock, config.silence_s) as stream:
            try:
                for name, shared in (("outbound", queue.outbound), ("inbound", queue.inbound)):
                    job = Job(
                        direction=name,
                        tun_fd=queue.fd,
                        stream_fd=stream.fileno(),
                        counters_fd=shared.fd,
                        heartbeat_s=config.heartbeat_s,
                        rules=config.rules,
                        coalesce=coalesce,
                    )
                    pumps[name] = Child(job.command(), job.inherited)
                return await _first_end(pumps, self._draining)
            finally:
                for pump in pumps.values():
                    pump.end()

    async def _recover(self, device: int) -> None:
        """The device was deleted under us: apply the network again, take the new device."""
        async with self._repairing:
            while self._devices == device:  # else another session has repaired it
                self._close()
                try:
                    await self._repair()
                    self._open()
                except (tun.TunGone, OSError) as error:
                    log.error("link.cannot_repair", reason=_say(error))
                    await trio.sleep(BACKOFF_MOST_S)


async def _first_end(pumps: dict[str, Child], draining: trio.Event) -> str:
    reasons: list[str] = []

    async def watch(pump: Child) -> None:
        status, said = await pump.wait()
        reasons.append(said or f"a pump died with status {status}")
        nursery.cancel_scope.cancel()

    async def drain() -> None:
        await draining.wait()
        pumps["outbound"].close_input()
        await trio.sleep(DRAIN_S)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for pump in pumps.values():
            nursery.start_soon(watch, pump)
        nursery.start_soon(drain)
    return reasons[0] if reasons else "drained"


def _sum(many: list[counters.Counters]) -> dict[str, int]:
    totals = dict.fromkeys(counters.NAMES, 0)
    for each in many:
        for name, value in each.read().items():
            totals[name] += value
    return totals


def _say(error: BaseException) -> str:
    return str(error) or type(error).__name__
