"""Whose turn is it? Few work at once, and who waits is served by guest in rotation, not by arrival.

A guest that asks a thousand times waits for itself; another's first question is next.
"""

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import trio


class Turns:
    """``at_once`` in all, and one of each guest. Who is cancelled while waiting loses its turn, nobody else."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._busy: set[Hashable] = set()
        self._waiting: OrderedDict[Hashable, deque[trio.Event]] = OrderedDict()

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(self, guest: Hashable) -> AsyncIterator[None]:
        await self._begin(guest)
        try:
            yield
        finally:
            self._busy.discard(guest)
            self._free += 1
            self._next()

    async def _begin(self, guest: Hashable) -> None:
        called = trio.Event()
        self._waiting.setdefault(guest, deque()).append(called)
        self._next()
        try:
            await called.wait()
        except trio.Cancelled:
            if called.is_set():
                self._busy.discard(guest)
                self._free += 1
            else:
                self._forget(guest, called)
            self._next()
            raise

    def _next(self) -> None:
        while self._free:
            guest = next((g for g in self._waiting if g not in self._busy), None)
            if guest is None:
                return
            called = self._waiting[guest][0]
            self._forget(guest, called)
            if guest in self._waiting:
                self._waiting.move_to_end(guest)
            self._busy.add(guest)
            self._free -= 1
            called.set()

    def _forget(self, guest: Hashable, called: trio.Event) -> None:
        self._waiting[guest].remove(called)
        if not self._waiting[guest]:
            del self._waiting[guest]
