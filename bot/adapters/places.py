"""A bounded number of places for slow work: by registry host, by caller, and in all.

Whoever finds none waits in line; who is behind somebody that waits for his own host or caller overtakes him.
Hosts that have never answered well share half of the places, so that no number of new names keeps the
others from what is known to work.
"""

from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

MAX_KNOWN = 256


class Busy(Exception):
    """No place, and the line is full; the message says whose."""


@dataclass(frozen=True)
class Bounds:
    """At once, and in line."""

    in_all: int
    by_host: int
    by_caller: int
    waiting: int
    waiting_by_caller: int


class _Wanted:
    """One who waits. Compared by identity: the same caller may wait twice."""

    def __init__(self, host: str, caller: str) -> None:
        self.host, self.caller, self.granted = host, caller, trio.Event()


class Places:
    """`take` one for as long as the work lasts."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._hosts: Counter[str] = Counter()
        self._callers: Counter[str] = Counter()
        self._line: list[_Wanted] = []
        self._known: OrderedDict[str, None] = OrderedDict()

    @asynccontextmanager
    async def take(self, host: str, caller: str) -> AsyncIterator[None]:
        """Raises `Busy`."""
        wanted = _Wanted(host, caller)
        self._queue(wanted)
        try:
            await wanted.granted.wait()
            yield
        finally:
            self._leave(wanted)

    def answered(self, host: str) -> None:
        """It did what it should: from now on it counts among those that are known."""
        self._known[host] = None
        self._known.move_to_end(host)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def failed(self, host: str) -> None:
        """It was too slow, or silent."""
        self._known.pop(host, None)

    def _queue(self, wanted: _Wanted) -> None:
        self._line.append(wanted)
        self._grant()
        if wanted.granted.is_set():
            return
        mine = sum(other.caller == wanted.caller for other in self._line)
        if mine > self._bounds.waiting_by_caller or len(self._line) > self._bounds.waiting:
            self._line.remove(wanted)
            whose = "you" if mine > self._bounds.waiting_by_caller else "others"
            raise Busy(f"too many images are being asked for by {whose} at this moment")

    def _leave(self, wanted: _Wanted) -> None:
        if wanted.granted.is_set():
            self._hosts[wanted.host] -= 1
            self._callers[wanted.caller] -= 1
            self._hosts, self._callers = +self._hosts, +self._callers
        else:
            self._line.remove(wanted)
        self._grant()

    def _grant(self) -> None:
        for wanted in list(self._line):
            if self._fits(wanted):
                self._line.remove(wanted)
                self._hosts[wanted.host] += 1
                self._callers[wanted.caller] += 1
                wanted.granted.set()

    def _fits(self, wanted: _Wanted) -> bool:
        bounds = self._bounds
        unknown = sum(n for host, n in self._hosts.items() if host not in self._known)
        return (
            self._hosts.total() < bounds.in_all
            and self._hosts[wanted.host] < bounds.by_host
            and self._callers[wanted.caller] < bounds.by_caller
            and (wanted.host in self._known or unknown < (bounds.in_all + 1) // 2)
        )
