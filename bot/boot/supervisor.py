"""Programs in order of their dependencies: readiness, restart with back-off, stop in reverse order.

A program runs in a session of its own; stopping signals the whole group, so that nothing it started
stays behind. Output goes to one file per program. One that runs already is adopted: its supervisor may have died.
"""

import math
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from bot.boot.adopt import Adopted, adopt, noting
from bot.boot.program_log import bound_log, last_words
from bot.latch import Latch

log = structlog.get_logger()
PROBE_S = 0.05
BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.2, 2.0
MOST_FIRST_TRIES = 4
# Beside what each program may take to end.
STOP_MORE_S = 10.0
# One that ended is started again meanwhile, with whatever time it takes to be ready.
UP_S = 120.0


@dataclass(frozen=True)
class Program:
    """``ready`` is probed until it says True, and may raise before; ``after`` names programs that must be ready
    before this one is started. One that is not ready after ``ready_s`` seconds is killed, and counts as ended. One
    that ends with ``over_code`` is not started again. ``outlives``: it goes on when we die, and our successor
    adopts it."""

    name: str
    command: Sequence[str]
    after: tuple[str, ...] = ()
    ready: Callable[[], Awaitable[bool]] | None = None
    stop_s: float = 10
    # The program's standard input is a pipe that closes when we die, however we die.
    holds_stdin: bool = False
    ready_s: float | None = None
    over_code: int | None = None
    outlives: bool = False


@dataclass
class _Running:
    program: Program
    # Open while it runs and is ready.
    up: Latch = field(default_factory=Latch)
    # It was ready for the first time, or ``problem`` says why it never was.
    settled: trio.Event = field(default_factory=trio.Event)
    problem: str | None = None
    stopping: trio.Event = field(default_factory=trio.Event)
    down: trio.Event = field(default_factory=trio.Event)
    process: trio.Process | Adopted | None = None
    restarts: int = 0
    # It was killed since it was not ready in time.
    late: bool = False


class ProgramFailed(Exception):
    """A program was never ready: it is not there, or it ended each time. The message says which and why."""


class ProgramOver(ProgramFailed):
    """A program ended and says that it must not be started again."""


class Supervisor:
    """Add programs, then `run` in a nursery; `stop` ends them all in reverse order."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._running: dict[str, _Running] = {}
        self._ending = False
        self._over: tuple[str, str] | None = None
        self._is_over = trio.Event()

    def pid(self, name: str) -> int:
        """The process id of a program that is running."""
        process = self._running[name].process
        assert process is not None  # noqa: S101 - asked for only after it was started
        return process.pid

    def restarts(self, name: str) -> int:
        return self._running[name].restarts

    def all_restarts(self) -> dict[str, int]:
        """Of those that had to be started again."""
        found = {name: running.restarts for name, running in self._running.items()}
        return {name: count for name, count in found.items() if count}

    async def start(self, nursery: trio.Nursery, program: Program) -> None:
        """Start, and return when it is ready. Raises `ProgramFailed`."""
        for other in program.after:
            await self._wait_for(self._running[other], program)
        if self._ending:
            raise ProgramFailed(f"{program.name} is not started: all are being stopped")
        # Known from the moment on at which somebody sees to its end, not before: who stops it waits for that.
        running = self._running[program.name] = _Running(program)
        nursery.start_soon(self._keep_running, running)
        await running.settled.wait()
        self._raise_if_over()
        if running.problem is not None:
            raise ProgramFailed(f"{program.name} does not start: {running.problem}")

    async def _wait_for(self, other: _Running, program: Program) -> None:
        """Raises `ProgramFailed` when the other one is down for good, or does not come up."""
        with trio.move_on_after(UP_S):
            async with trio.open_nursery() as nursery:
                for event in (other.up, other.down):
                    nursery.start_soon(_wait_and_cancel, event, nursery.cancel_scope)
        if not other.up.is_open and not self._ending:
            raise ProgramFailed(f"{program.name} is not started: {other.program.name} is not up")

    async def watch(self) -> None:
        """Raises `ProgramOver` once one has ended for good."""
        await self._is_over.wait()
        self._raise_if_over()

    def _raise_if_over(self) -> None:
        if self._over is not None:
            raise ProgramOver(f"{self._over[0]} ended for good: {self._over[1]}")

    async def stop(self) -> None:
        """Stop everything, dependents first; returns when all are down, and after a time whatever they do."""
        self._ending = True
        most_s = STOP_MORE_S + sum(each.program.stop_s for each in self._running.values())
        with trio.move_on_after(most_s) as patience:
            async with trio.open_nursery() as nursery:
                for running in self._running.values():
                    nursery.start_soon(self._stop_one, running)
        if patience.cancelled_caught:
            log.error("not all programs ended in order; they are killed", within_s=most_s)
            self._kill_all()

    def _kill_all(self) -> None:
        for running in self._running.values():
            running.stopping.set()
            if running.process is not None:
                _signal_group(running.process, signal.SIGKILL)

    async def halt(self, name: str) -> None:
        """Stop one program, whatever depends on it; it can be started again."""
        running = self._running[name]
        running.stopping.set()
        await running.down.wait()

    async def kill(self, name: str) -> None:
        """kill -9, and it stays down; it can be started again."""
        running = self._running[name]
        running.stopping.set()
        if running.process is not None:
            _signal_group(running.process, signal.SIGKILL)
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
                cannot = await self._run_once(running)
                if running.stopping.is_set() or self._ended_for_good(running):
                    return
                running.restarts += 1
                # What is not there at first will not come; what was there may.
                if not running.settled.is_set() and (
                    cannot or running.restarts >= MOST_FIRST_TRIES
                ):
                    running.problem = cannot or self._why_not(running)
                    return
                backoff_s = (
                    BACKOFF_FIRST_S
                    if trio.current_time() - started > BACKOFF_MOST_S
                    else min(backoff_s * 2, BACKOFF_MOST_S)
                )
                log.warning(
                    "program ended", program=running.program.name, retry_s=backoff_s, cannot=cannot
                )
                with trio.move_on_after(backoff_s):
                    await running.stopping.wait()
        finally:
            if not running.settled.is_set():
                running.problem = running.problem or "it was stopped before"
                running.settled.set()
            running.down.set()

    def _why_not(self, running: _Running) -> str:
        late = f"it is not ready after {running.program.ready_s} s; " if running.late else ""
        return late + last_words(self._log_of(running.program))

    def _ended_for_good(self, running: _Running) -> bool:
        process, code = running.process, running.program.over_code
        if code is None or not isinstance(process, trio.Process) or process.returncode != code:
            return False
        words = last_words(self._log_of(running.program)).strip().splitlines()
        self._over = (running.program.name, words[-1] if words else f"exit code {code}")
        self._is_over.set()
        return True

    async def _run_once(self, running: _Running) -> str | None:
        """Until it ends; or why it could not be started."""
        try:
            process = self._adopt(running.program) or await self._open(running.program)
        except OSError as error:
            return f"{error.strerror}: {error.filename}"
        running.process, running.late = process, False
        ended = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._see_ready, running, process)
                nursery.start_soon(self._end_when_told, running, process)
                nursery.start_soon(bound_log, self._log_of(running.program))
                await process.wait()
                ended = True
                nursery.cancel_scope.cancel()
        finally:
            running.up.shut()
            # Cancelled without being told to stop, as by a fault of ours: whom the next supervisor adopts goes on.
            if ended or running.stopping.is_set() or not running.program.outlives:
                _signal_group(process, signal.SIGKILL)
                with trio.CancelScope(shield=True):
                    await process.wait()
            if isinstance(process, Adopted):
                process.close()
        return None

    def _adopt(self, program: Program) -> Adopted | None:
        found = adopt(self._noted_at(program)) if program.outlives else None
        if found is not None:
            log.info("program adopted", program=program.name, pid=found.pid)
        return found

    async def _open(self, program: Program) -> trio.Process:
        command = list(program.command)
        if program.outlives:
            command = noting(self._noted_at(program), command)
        with self._log_of(program).open("ab") as output:
            return await trio.lowlevel.open_process(
                command,
                stdin=subprocess.PIPE if program.holds_stdin else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _log_of(self, program: Program) -> Path:
        return self._log_dir / f"{program.name}.log"

    def _noted_at(self, program: Program) -> Path:
        return self._log_dir / f"{program.name}.pid"

    async def _see_ready(self, running: _Running, process: trio.Process | Adopted) -> None:
        ready_s = running.program.ready_s
        with trio.move_on_after(math.inf if ready_s is None else ready_s) as patience:
            await self._probe(running)
        if patience.cancelled_caught:
            log.warning("program is not ready", program=running.program.name, after_s=ready_s)
            running.late = True
            _signal_group(process, signal.SIGKILL)

    async def _probe(self, running: _Running) -> None:
        ready, told = running.program.ready, False
        while ready is not None:
            try:
                if await ready():
                    break
            except Exception:
                # What it asks may not be there yet.
                if not told:
                    log.exception("probe failed", program=running.program.name)
                told = True
            await trio.sleep(PROBE_S)
        running.up.open()
        running.settled.set()

    async def _end_when_told(self, running: _Running, process: trio.Process | Adopted) -> None:
        await running.stopping.wait()
        _signal_group(process, signal.SIGTERM)
        with trio.move_on_after(running.program.stop_s):
            await process.wait()
        _signal_group(process, signal.SIGKILL)


async def _wait_and_cancel(event: Latch | trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _signal_group(process: trio.Process | Adopted, number: int) -> None:
    # Its pid is also its group's: it was started in a session of its own.
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
