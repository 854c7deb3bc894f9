"""Proof that a container's process runs: a pidfd for each, never ``docker stats``.

A run is named by the start tick of the container's first process, which is process 1 of its own pid namespace:
the stages of the runtime, which pass through the same cgroup while it starts, are not. The process is found once,
by its cgroup; this also holds when Docker lives in a pid namespace of its own. From then on its pidfd stands for it:
no other process can take its number, and it becomes readable when the last thread is gone. ``/proc`` says zombie
as soon as the main thread has left, and the others may run on for as long as they like.
"""

import os
import select
from dataclasses import dataclass

import trio

from bot.adapters.engine import cgroup
from handlers.domain.meter import Ended, Run
from handlers.ports import Clock

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# What the engine says is running, and no process is found for, is an alarm after so long.
UNMETERED_MS = 10_000
# An end that we learn of late, since we were held up ourselves, is charged for at most so long after the last look.
LOOK_MS = 1_500


@dataclass(frozen=True)
class _Held:
    """A process that stands for a container, and since when it is known."""

    container_id: str
    pidfd: int
    run: Run
    since_ms: int


class ProcMeter:
    """Keeps which process stands for which container. ``cgroup_parent`` as given to dockerd."""

    def __init__(self, cgroup_parent: str, boot_id: str, clock: Clock) -> None:
        self._parent = cgroup_parent
        self._boot_id = boot_id
        self._clock = clock
        self._expected: dict[str, str] = {}
        self._held: dict[str, _Held] = {}
        self._by_pidfd: dict[int, str] = {}
        self._epoll = select.epoll()
        self._looked_ms = 0
        self._ended: list[Ended] = []
        self._missing_since: dict[str, int] = {}
        self._unmetered: frozenset[str] = frozenset()

    def expect(self, running: dict[str, str]) -> None:
        """The containers that the engine says are running: pubkey -> container id."""
        self._expected = dict(running)
        self._reap()
        for pubkey, held in list(self._held.items()):
            if running.get(pubkey) != held.container_id:
                self._end(pubkey)
        missing, now_ms = running.keys() - self.runs(), self._clock.boot_ms()
        self._missing_since = {
            pubkey: self._missing_since.get(pubkey, now_ms) for pubkey in missing
        }
        self._unmetered = frozenset(
            pubkey
            for pubkey, since_ms in self._missing_since.items()
            if now_ms - since_ms >= UNMETERED_MS
        )

    def expect_one(self, pubkey: str, container_id: str | None) -> None:
        """As `expect`, for one container that was just started, or (None) stopped."""
        self._reap()
        if pubkey in self._held:
            self._end(pubkey)
        self._expected.pop(pubkey, None)
        self._missing_since.pop(pubkey, None)
        self._unmetered -= {pubkey}
        if container_id is not None:
            self._expected[pubkey] = container_id
            self._hold(pubkey, container_id)

    def runs(self) -> dict[str, Run]:
        """What is alive now. While nothing changes, this asks the kernel a single question."""
        self._reap()
        for pubkey in self._expected.keys() - self._held.keys():
            self._hold(pubkey, self._expected[pubkey])
        self._looked_ms = self._clock.boot_ms()
        return {pubkey: held.run for pubkey, held in self._held.items()}

    def unmetered(self) -> frozenset[str]:
        """Containers that the engine goes on calling running, and for which there is no run."""
        return self._unmetered - self._held.keys()

    async def wait_end(self) -> None:
        """Until a run is over, which is then known to the moment."""
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        self._reap()

    def ended(self) -> list[Ended]:
        """Runs that are over, until they are forgotten."""
        self._reap()
        return list(self._ended)

    def forget_ended(self, ended: Ended) -> None:
        self._ended = [kept for kept in self._ended if kept != ended]

    def close(self) -> None:
        for pidfd in self._by_pidfd:
            os.close(pidfd)
        self._held, self._by_pidfd = {}, {}
        self._epoll.close()

    def _reap(self) -> None:
        over = self._epoll.poll(0, maxevents=max(1, len(self._held)))
        for pubkey in [self._by_pidfd[pidfd] for pidfd, _ in over]:
            self._end(pubkey, self._clock.boot_ms())

    def _end(self, pubkey: str, at_ms: int | None = None) -> None:
        """``at_ms``: the moment, where it is known."""
        held = self._held.pop(pubkey)
        del self._by_pidfd[held.pidfd]
        os.close(held.pidfd)  # which also takes it out of the epoll
        seen_ms = max(held.since_ms, self._looked_ms)
        ended_ms = seen_ms if at_ms is None else min(at_ms, seen_ms + LOOK_MS)
        self._ended.append(Ended(pubkey, held.run, ended_ms))

    def _hold(self, pubkey: str, container_id: str) -> None:
        opened = _first_process(self._parent, container_id)
        if opened is None:
            return
        pidfd, tick = opened
        run = Run(self._boot_id, tick, tick * 1_000 // TICKS_PER_S)
        self._epoll.register(pidfd, select.EPOLLIN)
        self._by_pidfd[pidfd] = pubkey
        self._held[pubkey] = _Held(container_id, pidfd, run, self._clock.boot_ms())


def _first_process(parent: str, container_id: str) -> tuple[int, int] | None:
    """A pidfd of the container's first process, and its start tick."""
    ticks = {
        pid: tick
        for pid in cgroup.pids(parent, container_id)
        if _is_first(pid) and (tick := _start_tick(pid)) is not None
    }
    if not ticks:
        return None
    # One container has one; of several, which something else must have put there, the oldest.
    pid = min(ticks, key=lambda p: (ticks[p], p))
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    # Until it was opened, the number could have gone to another process.
    same = _start_tick(pid) == ticks[pid] and pid in cgroup.pids(parent, container_id)
    if same and not _is_over(pidfd):
        return pidfd, ticks[pid]
    os.close(pidfd)
    return None


def _is_over(pidfd: int) -> bool:
    poll = select.poll()  # unlike select(), without a limit to the number
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _is_first(pid: int) -> bool:
    """Whether it is number 1 of a pid namespace below ours."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:  # noqa: PTH123 - four times faster than Path
            text = status.read()
    except OSError:
        return False
    numbers = text.partition(b"\nNSpid:")[2].partition(b"\n")[0].split()
    return len(numbers) > 1 and numbers[-1] == b"1"


def _start_tick(pid: int) -> int | None:
    """Field 22 of ``/proc/PID/stat``; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123 - as above
            # The name, field 2, may hold spaces and parentheses: count from its end.
            return int(stat.read().rpartition(b")")[2].split()[19])
    except OSError:
        return None
