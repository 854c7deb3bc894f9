"""The parent and the enclave as a whole: what runs, in what order, and when it is ready.

A task that fails ends the service with its reason: whoever supervises starts it again, and nothing that
is established is lost by that (devices, routes and connections are the kernel's).
"""

import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
import trio

from netstack import control, dns, streams, vsock
from netstack.config import EnclaveConfig, ParentConfig
from netstack.control import Ports, Refused
from netstack.machine import containers, linux, netconfig
from netstack.machine.apply import apply, remove
from netstack.machine.layout import ENCLAVE_V4, QUEUE_NUMBER, Uplink
from netstack.packets.policy import Rules, rules_at_enclave, rules_at_parent
from netstack.planes.link import BACKOFF_FIRST_S, BACKOFF_MOST_S, DRAIN_S, Link, LinkConfig
from netstack.planes.nfqueue import QueueEnd, RawConfig, RawLink, TunEnd

log = structlog.get_logger()
STATS_EVERY_S = 60.0
REPEAT_S = 10.0
_BEFORE = "sysctls.json"

T = TypeVar("T")
Ready = Callable[[], Awaitable[None]]
Repair = Callable[[], Awaitable[None]]


async def run_parent(config: ParentConfig, ready: Ready) -> None:
    """Until a signal. Raises `CannotApply`, OSError."""
    uplink = await _in_thread(linux.find_uplink, config.uplink)
    repair = partial(_apply, netconfig.parent(config.plane, uplink), config.state)
    await repair()
    tun = config.plane.kind == "tun"
    handlers: dict[str, control.Handler] = {
        "get_uplink": _just({**asdict(uplink), "plane": config.plane.kind}),
        "set_ports": _set_ports if tun else _all_ports_are_open,
    }
    rules = rules_at_parent(netconfig.enclave_addresses(config.plane, uplink))
    plane = _plane(config, uplink, rules, repair)
    async with trio.open_nursery() as nursery:
        listener = await vsock.listen(config.control)
        nursery.start_soon(control.serve, listener, handlers, config.peer_cid)
        await _start_streams(nursery, config.streams, config.peer_cid)
        await _serve(plane, ready, nursery)


async def run_enclave(config: EnclaveConfig, ready: Ready) -> None:
    """Until a signal. Raises `CannotApply`, OSError."""
    uplink = config.uplink or await _ask_parent(config)
    repair = partial(_apply, netconfig.enclave(config.plane, uplink, config.inside), config.state)
    await repair()
    server = _ForTheServer(config)
    own = netconfig.enclave_addresses(config.plane, uplink)
    plane = _plane(config, uplink, rules_at_enclave(own, config.inside.containers), repair)
    async with trio.open_nursery() as nursery:
        handlers = {**server.handlers(), "get_status": _status(plane)}
        nursery.start_soon(control.serve, await vsock.listen(config.local), handlers)
        nursery.start_soon(server.keep_ports)
        await _start_streams(nursery, config.streams, None)
        resolving = trio.Event()
        if config.resolver is not None:
            nursery.start_soon(dns.run, config.resolver, config.inside, config.state, resolving)
            await resolving.wait()
        await _serve(plane, ready, nursery)


class DataPlane(Protocol):
    """`Link` or `RawLink`."""

    up: trio.Event

    @property
    def connected(self) -> int:
        """Streams that carry packets now."""
        ...

    async def run(self) -> None:
        """Until cancelled."""
        ...

    def drain(self) -> None:
        """Send what waits; begin nothing."""
        ...

    def stats(self) -> dict[str, object]:
        """Numbers for the log."""
        ...


def _plane(
    config: ParentConfig | EnclaveConfig, uplink: Uplink, rules: Rules, repair: Repair
) -> DataPlane:
    at_parent = isinstance(config, ParentConfig)
    peer_cid = config.peer_cid if isinstance(config, ParentConfig) else None
    plane = config.plane
    if plane.kind == "nfqueue":
        end = partial(QueueEnd, QUEUE_NUMBER) if at_parent else partial(TunEnd, plane.device)
        return RawLink(RawConfig(config.raw_peer, config.raw_listen, rules, peer_cid), end, repair)
    mtu = netconfig.tunnel_mtu(uplink.mtu)
    link = LinkConfig(plane.device, config.packets, rules, mtu, at_parent, plane.queues, peer_cid)
    return Link(link, repair)


async def remove_network(config: ParentConfig | EnclaveConfig) -> list[str]:
    """Leave no trace. Raises `CannotApply`."""
    if isinstance(config, ParentConfig):
        uplink = await _in_thread(linux.find_uplink, config.uplink)
        network = netconfig.parent(config.plane, uplink)
    else:
        # Which addresses there were does not matter: the kernel is asked for what is there.
        uplink = config.uplink or Uplink("", ENCLAVE_V4, netconfig.MOST_MTU, ipv6=True)
        network = netconfig.enclave(config.plane, uplink, config.inside)
    return await _in_thread(remove, network, linux.LinuxKernel(), config.state / _BEFORE)


class _ForTheServer:
    """What the enclave's server wants open, and may ask of us."""

    def __init__(self, config: EnclaveConfig) -> None:
        self._config = config
        self._ports: Ports | None = None

    def handlers(self) -> dict[str, control.Handler]:
        return {
            "set_ports": self._set_ports,
            "set_containers": self._set_containers,
            "get_traffic": self._traffic,
        }

    async def keep_ports(self) -> None:
        """Say it again and again: the parent may have restarted. The same list changes nothing."""
        while True:
            await trio.sleep(REPEAT_S)
            if self._ports is None:
                continue  # we restarted, and do not know yet; what is open stays open
            try:
                await self._tell(self._ports)
            except (Refused, OSError, trio.TooSlowError) as error:
                log.warning("ports.not_told", reason=_say(error))

    async def _set_ports(self, params: Mapping[str, object]) -> object:
        self._ports = control.read_ports(params)
        try:
            return await self._tell(self._ports)
        except (OSError, trio.TooSlowError) as error:
            text = f"the parent cannot be reached now, and will be told: {_say(error)}"
            raise Refused(text) from error

    async def _tell(self, ports: Ports) -> object:
        if self._config.uplink is not None:
            return ports.words()  # a parent of others has no control channel, and all ports open
        return await control.call(self._config.control, "set_ports", **ports.words())

    async def _set_containers(self, params: Mapping[str, object]) -> object:
        wanted = control.read_containers(params)
        changed = await _in_thread(containers.set_rules, wanted)
        return {"changed": changed}

    async def _traffic(self, _: Mapping[str, object]) -> object:
        return {a: asdict(t) for a, t in (await _in_thread(containers.traffic)).items()}


async def _ask_parent(config: EnclaveConfig) -> Uplink:
    """Its uplink, however long it takes: without it there is no network."""
    backoff_s = BACKOFF_FIRST_S
    while True:
        try:
            return control.read_uplink(await control.call(config.control, "get_uplink"))
        except (Refused, OSError, trio.TooSlowError) as error:
            log.info("parent.waiting", reason=_say(error))
        await trio.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, BACKOFF_MOST_S)


async def _start_streams(
    nursery: trio.Nursery, wanted: tuple[streams.Stream, ...], peer_cid: int | None
) -> None:
    for stream in wanted:
        listener = await vsock.listen(stream.source)
        nursery.start_soon(streams.serve, stream, listener, peer_cid)


async def _serve(plane: DataPlane, ready: Ready, nursery: trio.Nursery) -> None:
    """Say when packets can flow; log numbers; end all by a signal, after what waits was sent."""
    nursery.start_soon(plane.run)
    nursery.start_soon(_report, plane)
    nursery.start_soon(_announce, plane, ready)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            break
    plane.drain()
    with trio.move_on_after(DRAIN_S):
        while plane.connected:  # noqa: ASYNC110 - a few milliseconds, once
            await trio.sleep(0.01)
    nursery.cancel_scope.cancel()


async def _announce(plane: DataPlane, ready: Ready) -> None:
    await plane.up.wait()
    await ready()
    log.info("ready")


async def _report(plane: DataPlane) -> None:
    while True:
        await trio.sleep(STATS_EVERY_S)
        log.info("traffic", **plane.stats())


async def _apply(network: netconfig.Network, state: Path) -> None:
    changed = await _in_thread(apply, network, linux.LinuxKernel(), state / _BEFORE)
    log.info("network.applied", changed=len(changed), steps=changed[:50])


async def _set_ports(params: Mapping[str, object]) -> object:
    ports = control.read_ports(params)
    if (set(ports.tcp), set(ports.udp)) != await _in_thread(linux.open_ports):
        await _in_thread(linux.set_ports, set(ports.tcp), set(ports.udp))
        log.info("ports.set", **ports.words())
    return ports.words()


async def _all_ports_are_open(params: Mapping[str, object]) -> object:
    return control.read_ports(params).words()


def _just(value: object) -> control.Handler:
    async def answer(_: Mapping[str, object]) -> object:
        await trio.lowlevel.checkpoint()
        return value

    return answer


def _status(plane: DataPlane) -> control.Handler:
    async def answer(_: Mapping[str, object]) -> object:
        await trio.lowlevel.checkpoint()
        return {"up": plane.up.is_set(), **plane.stats()}

    return answer


def _say(error: BaseException) -> str:
    return str(error) or type(error).__name__


async def _in_thread(work: Callable[..., T], *args: object) -> T:
    return await trio.to_thread.run_sync(partial(work, *args))
