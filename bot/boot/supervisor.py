"""Programs in order of their dependencies: readiness, restart with back-off, stop in reverse order.

A program runs in a session of its own; stopping signals the whole group, so that nothing it started
stays behind. Output goes to one file per program.
"""

import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

log = structlog.get_logger()
PROBE_S = 0.05
BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.2, 2.0


@dataclass(frozen=True)
class Program:
    """``ready`` is probed until it says True; ``after`` names programs that must be ready before."""

    name: str
    command: Sequence[str]
    after: tuple[str, ...] = ()
    ready: Callable[[], Awaitable[bool]] | None = None
    stop_s: float = 10
    # The program's standard input is a pipe that closes when we die, however we die.
    holds_stdin: bool = False


@dataclass
class _Running:
    program: Program
    up: trio.Event = field(default_factory=trio.Event)
    stopping: trio.Event = field(default_factory=trio.Event)
    down: trio.Event = field(default_factory=trio.Event)
    process: trio.Process | None = None
    restarts: int = 0


class ProgramFailed(Exception):
    """A program ended before it was ever ready; the message holds the end of its output."""


class Supervisor:
    """Add programs, then `run` in a nursery; `stop` ends them all in reverse order."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._running: dict[str, _Running] = {}

    def pid(self, name: str) -> int:
        """The process id of a program that is running."""
        process = self._running[name].process
        assert process is not None  # noqa: S101 - asked for only after it was started
        return process.pid

    def restarts(self, name: str) -> int:
        return self._running[name].restarts

    async def start(self, nursery: trio.Nursery, program: Program) -> None:
        """Start, and return when it is ready. Raises `ProgramFailed`."""
        running = _Running(program)
        self._running[program.name] = running
        for other in program.after:
            await self._running[other].up.wait()
        nursery.start_soon(self._keep_running, running)
        while not running.up.is_set():
            if running.restarts > 3:
                raise ProgramFailed(f"{program.name} does not start: {self._last_words(program)}")
            with trio.move_on_after(PROBE_S):
                await running.up.wait()

    async def stop(self) -> None:
        """Stop everything, dependents first; returns when all are down."""
        async with trio.open_nursery() as nursery:
            for running in self._running.values():
                nursery.start_soon(self._stop_one, running)

    async def halt(self, name: str) -> None:
        """Stop one program, whatever depends on it; it can be started again."""
        running = self._running[name]
        running.stopping.set()
        await running.down.wait()

    async def _stop_one(self, running: _Running) -> None:
        for other in self._running.values():
            if running.program.name in other.program.after:
                await other.down.wait()
        running.stopping.set()
        await running.down.wait()

    async def _keep_running(self, running: _Running) -> None:
        backoff_s = BACKOFF_FIRST_S
        try:
            while not running.stopping.is_set():
                started = trio.current_time()
                await self._run_once(running)
                if running.stopping.is_set():
                    return
                running.restarts += 1
                backoff_s = (
                    BACKOFF_FIRST_S
                    if trio.current_time() - started > BACKOFF_MOST_S
                    else min(backoff_s * 2, BACKOFF_MOST_S)
                )
                log.warning("program ended", program=running.program.name, retry_s=backoff_s)
                with trio.move_on_after(backoff_s):
                    await running.stopping.wait()
        finally:
            running.down.set()

    async def _run_once(self, running: _Running) -> None:
        program = running.program
        with (self._log_dir / f"{program.name}.log").open("ab") as output:
            process = await trio.lowlevel.open_process(
                list(program.command),
                stdin=subprocess.PIPE if program.holds_stdin else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        running.process = process
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._probe, running)
                nursery.start_soon(self._end_when_told, running, process)
                await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            _signal_group(process, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()

    async def _probe(self, running: _Running) -> None:
        ready = running.program.ready
        while ready is not None and not await ready():  # noqa: ASYNC110 - another process has no event
            await trio.sleep(PROBE_S)
        running.up.set()

    async def _end_when_told(self, running: _Running, process: trio.Process) -> None:
        await running.stopping.wait()
        _signal_group(process, signal.SIGTERM)
        with trio.move_on_after(running.program.stop_s):
            await process.wait()
        _signal_group(process, signal.SIGKILL)

    def _last_words(self, program: Program) -> str:
        text = (self._log_dir / f"{program.name}.log").read_text(errors="replace")
        return text[-1_500:]


def _signal_group(process: trio.Process, number: int) -> None:
    # Its pid is also its group's: it was started in a session of its own.
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
