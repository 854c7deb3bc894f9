"""``enclaved boot``: the steps from power-on to a server that is ready; again after any death; and down in order.

It holds no secret and keeps no state. Each step finds done what is done already: what runs is adopted, what is
mounted stays. So whoever kills this process, or any other, only makes it walk the same steps again.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import structlog
import trio

from bot.adapters.engine.cgroup import group_of_cores
from bot.adapters.nsm import NsmUnusable
from bot.boot.machine import programs
from bot.boot.machine.clock import ClockGuard, ClockWrong
from bot.boot.machine.engine_files import EngineSettings
from bot.boot.machine.memory import why_not_enough
from bot.boot.machine.mounts import have_bytes, mount_missing, shares_of, tmpfs_of
from bot.boot.machine.probes import tcp_answers
from bot.boot.steps import Step, Steps
from bot.boot.supervisor import ProgramFailed, ProgramOver, Supervisor
from bot.boot.unlock import Halted, Overtaken
from bot.config import ConfigError, MachineConfig
from bot.parent.client import ParentChannel, ParentSilent
from bot.parent.wire import SHUTDOWN
from netstack.config import ConfigError as NetworkConfigError
from netstack.config import EnclaveConfig, load_enclave
from netstack.control import Refused, call
from netstack.dns import docker_settings
from netstack.machine.layout import RESOLVER
from netstack.vsock import parse_address
from nips.errors import BadInput

log = structlog.get_logger()
REPORT_EVERY_S = 2.0
RETRY_S = 1.0
ENGINE_GROUP = "enclaved-engine"
RESOLVER_WAIT_S = 30.0
# MTU of bridges: that of the link to the parent is never more.
MTU = 1_500


class Boot:
    """`run` it once."""

    def __init__(self, path: Path, config: MachineConfig) -> None:
        self._path, self._config = path, config
        self.steps = Steps(trio.current_time)
        self._supervisor = Supervisor(config.boot.log_dir)
        self._parent = _parent_of(config)
        self._inside = _network_of(config)
        self._guard: ClockGuard | None = None
        self._enough = trio.Event()
        self._todo: tuple[tuple[Step, Callable[[trio.Nursery], Awaitable[None]]], ...] = (
            (Step.PARENT, self._reach_parent),
            (Step.MEMORY, self._check_memory),
            (Step.MOUNTS, self._mount),
            (Step.NETWORK, self._start_network),
            (Step.RESOLVER, self._await_resolver),
            (Step.CLOCK, self._check_clock),
            (Step.CONTAINERD, self._start_containerd),
            (Step.DOCKERD, self._start_dockerd),
            (Step.SERVER, self._start_server),
        )

    def end(self) -> None:
        """It is enough: save, and go down in order."""
        self._enough.set()

    async def run(self) -> None:
        """Until `end` is called, or the parent says so; then everything goes down in order.

        Raises `Halted` with the one reason why it cannot go on, after the parent was told.
        """
        for folder in (self._config.boot.run_dir, self._config.boot.log_dir):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        async with trio.open_nursery() as nursery:
            try:
                if self._parent is not None:
                    nursery.start_soon(self._parent.run_events, self._obey)
                    nursery.start_soon(self._report)
                await self._live(nursery)
            finally:
                # A fault of ours leaves everything running: our successor adopts it.
                if self._enough.is_set() or self.steps.halted is not None:
                    with trio.CancelScope(shield=True):
                        await self._supervisor.stop()
                    log.info("down")
                nursery.cancel_scope.cancel()

    async def _live(self, programs_nursery: trio.Nursery) -> None:
        """Programs are in a nursery that outlives this: they are stopped in order, not cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_enough, nursery.cancel_scope)
            await self._walk(programs_nursery)
            await self._stay()

    async def _until_enough(self, scope: trio.CancelScope) -> None:
        await self._enough.wait()
        scope.cancel()

    async def _walk(self, nursery: trio.Nursery) -> None:
        for step, do in self._todo:
            self.steps.reach(step)
            await self._or_halt(step, partial(do, nursery))
        self.steps.finish()
        log.info("up")

    async def _or_halt(self, step: Step, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except _PROBLEMS as problem:
            await self._halt(step, problem)

    async def _halt(self, step: Step, problem: Exception) -> NoReturn:
        reason = f"{step.value}: {problem}"
        self.steps.halt(reason)
        log.error("halted", reason=reason)
        if self._parent is not None:
            await self._parent.log(f"halted: {reason}")
            await self._tell_report()
        raise (Overtaken if isinstance(problem, ProgramOver) else Halted)(reason)

    async def _stay(self) -> None:
        """Supervised; what would make us stop is a clock that goes wrong, or a server that was overtaken."""
        async with trio.open_nursery() as nursery:
            if self._guard is not None:
                nursery.start_soon(self._or_halt, Step.CLOCK, self._guard.run)
            nursery.start_soon(self._or_halt, Step.SERVER, self._supervisor.watch)

    # -- the steps -----------------------------------------------------------------------------------------

    async def _reach_parent(self, _: trio.Nursery) -> None:
        """However long it takes: there is nobody else to tell."""
        told = ""
        while self._parent is not None:
            try:
                await self._parent.ask("get_ip")
                return
            except ParentSilent as silent:
                if str(silent) != told:
                    log.warning("the parent does not answer yet", reason=str(silent))
                told = str(silent)
                await trio.sleep(RETRY_S)

    async def _check_memory(self, _: trio.Nursery) -> None:
        have = await trio.to_thread.run_sync(have_bytes)
        if reason := why_not_enough(shares_of(self._config), have):
            raise Halted(reason)

    async def _mount(self, _: trio.Nursery) -> None:
        await mount_missing(tmpfs_of(self._config))

    async def _start_network(self, nursery: trio.Nursery) -> None:
        if self._inside is not None and self._config.boot.network is not None:
            program = programs.network(self._config.boot.network, self._inside)
            await self._supervisor.start(nursery, program)

    async def _await_resolver(self, _: trio.Nursery) -> None:
        if self._inside is None or self._inside.resolver is None:
            return
        await _write(Path("/etc/resolv.conf"), f"nameserver {RESOLVER}\n")
        with trio.move_on_after(RESOLVER_WAIT_S):
            while not await tcp_answers(RESOLVER, 53):  # noqa: ASYNC110 - another process has no event
                await trio.sleep(0.05)
            return
        raise Halted(f"the resolver does not listen at {RESOLVER}, see {programs.NETWORK}.log")

    async def _check_clock(self, _: trio.Nursery) -> None:
        if not self._config.attestation.is_attested:
            log.warning("no module attests us, so nobody says whether our clock is right")
            return
        self._guard = ClockGuard(self._config.attestation, self._config.boot.clock_apart_s)
        await self._guard.look()

    async def _start_containerd(self, nursery: trio.Nursery) -> None:
        settings = EngineSettings(self._config.engine.cgroup_parent)
        if self._inside is not None:
            settings = replace(settings, network=docker_settings(MTU))
        paths = programs.engine_paths(self._config)
        await trio.to_thread.run_sync(paths.write, settings)
        await self._supervisor.start(nursery, programs.containerd(paths, self._engine_group()))

    async def _start_dockerd(self, nursery: trio.Nursery) -> None:
        paths = programs.engine_paths(self._config)
        await self._supervisor.start(nursery, programs.dockerd(paths, self._engine_group()))

    def _engine_group(self) -> Path:
        return group_of_cores(ENGINE_GROUP, self._config.boot.engine_cpu_percent)

    async def _start_server(self, nursery: trio.Nursery) -> None:
        await self._supervisor.start(nursery, programs.server(self._path, self._config))

    # -- to and from the parent ---------------------------------------------------------------------------------

    def _obey(self, event: str) -> None:
        if event == SHUTDOWN:
            log.info("the parent orders us to end")
            self.end()

    async def _report(self) -> None:
        while True:
            await self._tell_report()
            await trio.sleep(REPORT_EVERY_S)

    async def _tell_report(self) -> None:
        """A parent that does not listen is told again."""
        try:
            if self._parent is not None:
                await self._parent.ask("report", **await self._words())
        except ParentSilent:
            pass

    async def _words(self) -> dict[str, object]:
        """Our steps, and what the server says of itself once it does."""
        own, told = self.steps.words(), await self._asked_server()
        took = {**_object(own["took_s"]), **_object(told.get("took_s"))}
        return {
            **told,
            "step": told.get("step") if self.steps.now_at in (Step.SERVER, None) else own["step"],
            "halted": own["halted"] or told.get("halted"),
            "took_s": took,
            "restarts": self._supervisor.all_restarts(),
        }

    async def _asked_server(self) -> dict[str, object]:
        try:
            return _object(await call(self._config.boot.status, "status"))
        except (OSError, Refused, trio.TooSlowError):
            return {}


_PROBLEMS = (
    Halted,
    ProgramFailed,
    ClockWrong,
    NsmUnusable,
    ConfigError,
    NetworkConfigError,
    BadInput,
    OSError,
)


def _object(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, dict) else {}


async def _write(path: Path, text: str) -> None:
    await trio.Path(path).write_text(text)


def _parent_of(config: MachineConfig) -> ParentChannel | None:
    address = config.parent.address
    return ParentChannel(parse_address(address)) if address else None


def _network_of(config: MachineConfig) -> EnclaveConfig | None:
    path = config.boot.network
    return load_enclave(path) if path is not None else None
