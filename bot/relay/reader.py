"""Stored events for whoever asks: in turns, each filter under an allowance, off the event loop.

A guest has one search at a time, whatever number of connections it asks through. What the server itself asks has a
search of its own and waits for no guest.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Iterable, Sequence
from contextlib import asynccontextmanager

import trio

from bot.relay.event_search import FETCH_BYTES, Allowance, EventSearch, Found, Row
from bot.relay.event_store import EventStore
from bot.relay.turns import Turns
from nips.event import Event, parse_event_json_untrusted
from nips.filters import Filter

SEARCHES = 2
# What the server itself asks may look at this many times more.
OWN_SHARE = 10
MOST_COUNTED = 1_000_000


class Reader:
    """``rows`` and ``seconds``: what one filter may cost."""

    def __init__(self, store: EventStore, rows: int, seconds: float) -> None:
        self._rows, self._seconds = rows, seconds
        self._free = [EventSearch(store.path, store.keys) for _ in range(SEARCHES)]
        self._own, self._own_turn = EventSearch(store.path, store.keys), trio.Lock()
        self._turns = Turns(SEARCHES)

    @property
    def waiting(self) -> int:
        """Searches that wait for their turn."""
        return self._turns.waiting

    def close(self) -> None:
        for search in (*self._free, self._own):
            search.close()

    async def find(
        self, guest: Hashable, filters: Sequence[Filter], most: int, now: int
    ) -> tuple[list[Row], bool]:
        """What matches any of them, in order, each cut to its limit; false when one could not be finished."""
        rows: set[Row] = set()
        is_all = True
        for wanted in filters:
            async with self._search(guest) as search:
                allowance = Allowance(self._rows, self._seconds)
                found = await trio.to_thread.run_sync(
                    search.find, wanted, _limit(wanted, most), now, allowance
                )
            rows.update(found.rows)
            is_all = is_all and found.is_all
        return sorted(rows), is_all

    async def count(
        self, guest: Hashable, filters: Sequence[Filter], now: int
    ) -> tuple[int, bool]:
        """NIP-45: how many match, regardless of limits; false when there are too many to look at."""
        unlimited = [Filter(f.ids, f.authors, f.kinds, f.tags, f.since, f.until) for f in filters]
        rows, is_all = await self.find(guest, unlimited, MOST_COUNTED, now)
        return len(rows), is_all

    async def texts(
        self, guest: Hashable, rows: Iterable[Row]
    ) -> AsyncGenerator[list[bytes], None]:
        """The events' JSON, some at a time."""
        for chunk in _chunks(rows):
            async with self._search(guest) as search:
                texts = await trio.to_thread.run_sync(search.fetch, chunk)
            yield texts

    async def own(self, filters: Iterable[Filter], most: int, now: int) -> list[Event]:
        """What the server asks. Strangers cannot crowd out who is served: those are looked for first."""
        rows: set[Row] = set()
        texts: list[bytes] = []
        async with self._own_turn:
            for wanted in filters:
                for kept_only in (True, False):
                    found = await trio.to_thread.run_sync(
                        self._find_own, wanted, _limit(wanted, most), now, kept_only
                    )
                    rows.update(found.rows)
            for chunk in _chunks(sorted(rows)):
                texts += await trio.to_thread.run_sync(self._own.fetch, chunk)
        return [parse_event_json_untrusted(text) for text in texts]

    def _find_own(self, wanted: Filter, limit: int, now: int, kept_only: bool) -> Found:
        allowance = Allowance(self._rows * OWN_SHARE, self._seconds * OWN_SHARE)
        return self._own.find(wanted, limit, now, allowance, kept_only=kept_only)

    @asynccontextmanager
    async def _search(self, guest: Hashable) -> AsyncIterator[EventSearch]:
        async with self._turns.turn(guest):
            search = self._free.pop()
            try:
                yield search
            finally:
                self._free.append(search)


def _limit(wanted: Filter, most: int) -> int:
    return most if wanted.limit is None else min(wanted.limit, most)


def _chunks(rows: Iterable[Row]) -> Iterable[list[bytes]]:
    """Ids, so many that what they stand for can be held at once."""
    chunk, size = list[bytes](), 0
    for _, event_id, event_bytes in rows:
        if chunk and size + event_bytes > FETCH_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(event_id)
        size += event_bytes
    if chunk:
        yield chunk
