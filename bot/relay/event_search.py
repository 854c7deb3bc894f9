"""Filters answered from the event tables, newest first, under an allowance of rows and time.

Each filter walks one index: by id, author, tag or kind, else by time. All of them run in NIP-01's order, so that
what was found before it was used up is the newest there is. Runs in a worker thread, on a connection that
can only read.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from pathlib import Path
from time import monotonic

from bot.files import closed_on_failure
from bot.relay.event_tables import Keys
from nips.filters import Filter

# SQLite asks about every so many steps of its machine; looking at one row takes about a dozen.
STEPS = 600
ROWS_PER_ASKING = 50
FETCH_BYTES = 128 * 1024
FEWEST, MOST_AT_ONCE = 4, 256
_LAST = 2**53
# (minus created_at, id, bytes): sorts as NIP-01 wants it.
Row = tuple[int, bytes, int]


class Allowance:
    """What one filter may use. ``rows`` counts those looked at, whether they match or not."""

    def __init__(self, rows: int, seconds: float) -> None:
        self._rows, self._until = rows, monotonic() + seconds

    def use(self, rows: int = ROWS_PER_ASKING) -> bool:
        """Whether it is used up; true ends a query of SQLite's."""
        self._rows -= rows
        return self._rows < 0 or monotonic() > self._until


class _UsedUp(Exception):
    """The allowance ended."""


@dataclass(frozen=True)
class Found:
    """What one filter found; ``is_all`` is false when its allowance ended first."""

    rows: list[Row]
    is_all: bool


@dataclass(frozen=True)
class _Walk:
    """One index, the names of its columns, and the values at which it is entered."""

    tables: str
    key: str
    values: Sequence[object]
    rank: str = "e.rank"
    id: str = "e.id"
    kind: str = "e.kind"
    tag: str = ""


class EventSearch:
    """One reading connection; used by one thread at a time."""

    def __init__(self, path: Path, keys: Keys) -> None:
        self._db = sqlite3.connect(
            f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        with closed_on_failure(self._db):
            self._db.execute("PRAGMA query_only = 1")
            self._db.execute("PRAGMA cache_size = -2000")
        self._keys = keys

    def find(
        self,
        wanted: Filter,
        limit: int,
        now: int,
        allowance: Allowance,
        *,
        kept_only: bool = False,
    ) -> Found:
        """At most ``limit``; ``kept_only`` leaves out what strangers sent."""
        rows: list[Row] = []
        if limit == 0:
            return Found(rows, is_all=True)
        self._db.set_progress_handler(allowance.use, STEPS)
        try:
            for row in merge(*self._walks(wanted, limit, now, allowance, kept_only=kept_only)):
                # Under two values of one tag, an event is met twice in a row.
                if not rows or rows[-1] != row:
                    rows.append(row)
                if len(rows) >= limit:
                    break
        except _UsedUp:
            return Found(rows, is_all=False)
        finally:
            self._db.set_progress_handler(None, 0)
        return Found(rows, is_all=True)

    def fetch(self, ids: Iterable[bytes]) -> list[bytes]:
        """The events' JSON, in this order, as far as they are still there."""
        rows = (
            self._db.execute("SELECT json FROM event WHERE id = ?", (event_id,)).fetchone()
            for event_id in ids
        )
        return [row[0] for row in rows if row is not None]

    def close(self) -> None:
        self._db.close()

    def _walks(
        self, wanted: Filter, limit: int, now: int, allowance: Allowance, *, kept_only: bool
    ) -> list[Iterator[Row]]:
        walk = self._choose(wanted)
        where, values = self._conditions(wanted, walk, now, kept_only=kept_only)
        statement = (
            f"SELECT {walk.rank}, {walk.id}, e.bytes FROM {walk.tables} WHERE {walk.key}"
            f" AND {where} AND ({walk.rank}, {walk.id}) > (?, ?)"
            f" ORDER BY {walk.rank}, {walk.id} LIMIT ?"
        )
        until = _LAST if wanted.until is None else min(wanted.until, _LAST)
        # Few at first where there are many to choose from.
        page = max(FEWEST, min(limit, MOST_AT_ONCE) // max(1, len(walk.values)))
        return [
            self._walk(statement, (value, *values), -until, page, allowance)
            for value in walk.values
        ]

    def _walk(
        self, statement: str, values: Sequence[object], rank: int, page: int, allowance: Allowance
    ) -> Iterator[Row]:
        """One value's events, a page at a time: a thousand open cursors would take up much memory."""
        event_id = b""
        while True:
            rows: list[Row] = []
            if allowance.use(page):
                raise _UsedUp
            try:
                rows.extend(self._db.execute(statement, (*values, rank, event_id, page)))
            except sqlite3.OperationalError as error:
                if "interrupted" not in str(error):
                    raise
                # What came before is true all the same.
                yield from rows
                raise _UsedUp from None
            yield from rows
            if len(rows) < page:
                return
            (rank, event_id, _), page = rows[-1], min(page * 4, MOST_AT_ONCE)

    def _choose(self, wanted: Filter) -> _Walk:
        if wanted.ids is not None:
            return _Walk("event e", "e.id = ?", _blobs(wanted.ids))
        if wanted.authors is not None:
            return _Walk("event e INDEXED BY event_author", "e.author = ?", _blobs(wanted.authors))
        if wanted.tags:
            name = min(wanted.tags, key=lambda name: len(wanted.tags[name]))
            tables = "tag w CROSS JOIN event e ON e.id = w.id"
            values = self._tag_keys(wanted, name)
            return _Walk(tables, "w.key = ?", values, "w.rank", "w.id", "w.kind", name)
        if wanted.kinds is not None:
            return _Walk("event e INDEXED BY event_kind", "e.kind = ?", sorted(wanted.kinds))
        return _Walk("event e INDEXED BY event_time", "? = 0", [0])

    def _conditions(
        self, wanted: Filter, walk: _Walk, now: int, *, kept_only: bool
    ) -> tuple[str, list[object]]:
        since = min(wanted.since or 0, _LAST)
        parts: list[tuple[str, Sequence[object]]] = [
            (f"{walk.rank} <= ?", [-since]),
            ("(e.expires_at IS NULL OR e.expires_at > ?)", [now]),
        ]
        # Each list is made into a table for every page: not for what the walk sees to.
        if wanted.kinds is not None and walk.key != "e.kind = ?":
            parts.append(_one_of(walk.kind, sorted(wanted.kinds)))
        if wanted.authors is not None and walk.key != "e.author = ?":
            parts.append(_one_of("e.author", _blobs(wanted.authors)))
        for name in wanted.tags.keys() - {walk.tag}:
            one_of, keys = _one_of("t.key", self._tag_keys(wanted, name))
            parts.append(
                (
                    f"EXISTS (SELECT 1 FROM tag t WHERE {one_of} AND t.rank = {walk.rank}"
                    f" AND t.id = {walk.id})",
                    keys,
                )
            )
        if kept_only:
            parts.append(("e.budget > 0", []))
        return " AND ".join(text for text, _ in parts), [v for _, values in parts for v in values]

    def _tag_keys(self, wanted: Filter, name: str) -> list[int]:
        return [self._keys.tag(name, value) for value in sorted(wanted.tags[name])]


def _blobs(texts: Iterable[str]) -> list[bytes]:
    return [bytes.fromhex(text) for text in sorted(texts)]


def _one_of(column: str, values: Sequence[object]) -> tuple[str, Sequence[object]]:
    return f"{column} IN ({','.join('?' * len(values))})", values
