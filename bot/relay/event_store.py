"""What a relay remembers, in SQLite: NIP-01's regular, replaceable and addressable events, NIP-09, NIP-40.

One writer stores what waits together, in one transaction, in a worker thread; `add` returns when it is stored.
A class of authors that is over its budget loses events of whoever takes up most of it, his oldest first, so that a flood
drowns itself. A deletion is remembered by being stored: it takes up its author's room, and ends like any event.
"""

import re
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from bot.files import closed_on_failure
from bot.relay.event_tables import EVENT_BYTES, TAG_BYTES, Budget, Keys, address_of, open_tables
from nips import kinds
from nips.errors import BadEvent
from nips.event import Event, parse_event_json_untrusted
from nips.nip40 import expiration_of

log = structlog.get_logger()
BATCH, BATCH_BYTES = 100, 1 << 20
FILE_SHARE = 3
TIDY_AT_ONCE = 500
# A deletion stays so long after what it deleted would have ended by itself.
GRACE_S = 30 * 86_400
LONGEST_S = 400 * 86_400
NOTHING_TO_DELETE = "restricted: there is nothing of yours here that this would delete"
_ID = re.compile("[0-9a-f]{64}")
UNABLE = "error: this relay cannot store anything now"


@dataclass(frozen=True)
class Room:
    """What a class of authors may take up."""

    events: int
    bytes: int


@dataclass(eq=False)
class _Waiting:
    """An event on its way in; ``reason`` is there when it is stored or refused."""

    event: Event
    budget: Budget
    now: int
    if_it_deletes: bool = False
    reason: str | None = None


class EventStore:
    """A file at ``path``, or a temporary one. `close` it."""

    def __init__(
        self,
        rooms: dict[Budget, Room],
        path: Path | None = None,
        max_file_bytes: int | None = None,
    ) -> None:
        if path is None:
            folder = tempfile.mkdtemp(prefix="relay-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            path = Path(folder) / "relay.sqlite"
        self.path = path.absolute()
        self._rooms = rooms
        if max_file_bytes is None:
            # Rooms count generously; should they be wrong, this is a full disk for the relay alone.
            max_file_bytes = FILE_SHARE * sum(room.bytes for room in rooms.values())
        self._db, earlier = open_tables(self.path, max_file_bytes)
        self._waiting: list[_Waiting] = []
        self._writing = trio.Lock()
        with closed_on_failure(self._db):
            (secret,) = self._db.execute("SELECT bytes FROM secret").fetchone()
            self.keys = Keys(secret)
            self._carry_over(earlier)

    def _carry_over(self, earlier: Iterable[bytes]) -> None:
        """In the transaction that made the new tables: all of it, or nothing."""
        for text in earlier:
            try:
                event = parse_event_json_untrusted(text)
            except BadEvent as error:
                log.warning("an event of the old store is left behind", reason=str(error))
            else:
                self._store(_Waiting(event, Budget.STRANGERS, event.created_at))
        if self._db.in_transaction:
            self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()

    async def add(
        self, event: Event, budget: Budget, now: int, *, if_it_deletes: bool = False
    ) -> str:
        """Store it. An empty string when it is new, else NIP-01's reason why it is not kept.

        With ``if_it_deletes``, a deletion is kept only if it deletes something here.
        """
        item = _Waiting(event, budget, now, if_it_deletes)
        # Strangers wait for us, not we for them.
        self._waiting.insert(0 if budget is Budget.OWN else len(self._waiting), item)
        try:
            # Who gets the lock first writes for all that wait; the others find it done.
            async with self._writing:
                while item.reason is None:
                    await self._write_waiting()
        finally:
            if item in self._waiting:
                self._waiting.remove(item)
        return item.reason or ""

    async def _write_waiting(self) -> None:
        batch, size = list[_Waiting](), 0
        for item in self._waiting[:BATCH]:
            size += len(item.event.json)
            if batch and size > BATCH_BYTES:
                break
            batch.append(item)
        del self._waiting[: len(batch)]
        # Others wait for this too: whose connection ends meanwhile must not take it from them.
        with trio.CancelScope(shield=True):
            reasons = await trio.to_thread.run_sync(self._write, batch)
        for item, reason in zip(batch, reasons, strict=True):
            item.reason = reason

    def served(self) -> dict[str, frozenset[str]]:
        """By name, whose events have been told to be kept. Before anything else runs."""
        rows = self._db.execute("SELECT who, lower(hex(author)) FROM served").fetchall()
        names = {who for who, _ in rows}
        return {name: frozenset(a for who, a in rows if who == name) for name in names}

    async def serve(self, who: str, authors: frozenset[str]) -> None:
        """Remember them, in place of those before; what of theirs lies among strangers' moves to safety."""
        async with self._writing:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._serve, who, authors)

    async def tidy(self, now: int) -> None:
        """Forget some of what has expired."""
        async with self._writing:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._tidy, now)

    async def size(self) -> dict[Budget, Room]:
        """What is taken up, by class."""
        async with self._writing:
            rows = self._db.execute("SELECT budget, events, bytes FROM total").fetchall()
        return {Budget(budget): Room(events, size) for budget, events, size in rows}

    # -- in the worker ------------------------------------------------------------------------------

    def _write(self, batch: list[_Waiting]) -> list[str]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            reasons = [self._store(item) for item in batch]
            self._db.execute("COMMIT")
        except Exception as error:
            self._roll_back()
            if len(batch) > 1:
                # Whatever it was that one of them brought about: it is not the others' fault.
                return [reason for item in batch for reason in self._write([item])]
            # A full disk, most likely.
            log.exception("relay cannot store", reason=str(error), event_id=batch[0].event.id)
            return [UNABLE]
        return reasons

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _serve(self, who: str, authors: frozenset[str]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM served WHERE who = ?", (who,))
            for author in authors:
                blob = bytes.fromhex(author)
                self._db.execute("INSERT INTO served VALUES (?, ?)", (who, blob))
                self._db.execute(
                    "UPDATE event SET budget = ? WHERE author = ? AND budget = ?",
                    (Budget.SERVED, blob, Budget.STRANGERS),
                )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            log.error("relay cannot remember whom it serves", reason=str(error))
            self._roll_back()

    def _tidy(self, now: int) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for (text,) in self._db.execute(
                "SELECT json FROM event WHERE expires_at <= ? LIMIT ?", (now, TIDY_AT_ONCE)
            ).fetchall():
                self._forget(parse_event_json_untrusted(text))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            log.error("relay cannot tidy up", reason=str(error))
            self._roll_back()

    def _store(self, item: _Waiting) -> str:
        event, budget = item.event, item.budget
        known = self._row("SELECT budget FROM event WHERE id = ?", bytes.fromhex(event.id))
        if known is not None:
            self._raise(event, Budget(known[0]), budget)
            return "duplicate: already have this event"
        if self._is_deleted(event):
            return "blocked: this event was deleted by its author"
        address = self.keys.address(event)
        current = address and self._row(
            "SELECT json, budget FROM event WHERE address = ?", address
        )
        if current:
            replaced = parse_event_json_untrusted(current[0])
            if not _is_newer(event, replaced):
                return "duplicate: have a newer event"
            self._forget(replaced)
            budget = max(budget, Budget(current[1]))
        ends_at = _ends_at(event)
        if event.kind == kinds.DELETION:
            ends = self._delete_what(event)
            if item.if_it_deletes and not ends:
                return NOTHING_TO_DELETE
            ends_at = _deletion_ends_at(item.now, ends)
        self._insert(event, address, ends_at, budget)
        self._evict(budget)
        return ""

    def _row(self, statement: str, *values: object) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._db.execute(statement, values).fetchone()
        return row

    def _raise(self, event: Event, known: Budget, budget: Budget) -> None:
        if budget > known:
            values = (budget, bytes.fromhex(event.id))
            self._db.execute("UPDATE event SET budget = ? WHERE id = ?", values)

    def _is_deleted(self, event: Event) -> bool:
        by_id = self.keys.deleted(event.pubkey, event.id)
        # A deletion cannot be deleted (NIP-09).
        if event.kind != kinds.DELETION and self._row("SELECT 1 FROM tag WHERE key = ?", by_id):
            return True
        address = address_of(event)
        if address is None:
            return False
        by_address = self.keys.deleted(event.pubkey, address)
        # Older than the newest deletion of its address; rank is minus created_at.
        return bool(
            self._row(
                "SELECT 1 FROM tag WHERE key = ? AND rank <= ?", by_address, -event.created_at
            )
        )

    def _delete_what(self, deletion: Event) -> list[int]:
        """When each event that it deleted here would have ended by itself; 0 for never."""
        ends = []
        for event in self._targets(deletion):
            # Only one's own events, and never a deletion itself (NIP-09).
            if event.pubkey == deletion.pubkey and event.kind != kinds.DELETION:
                self._forget(event)
                ends.append(_ends_at(event) or 0)
        return ends

    def _targets(self, deletion: Event) -> Iterator[Event]:
        for event_id in deletion.tag_values("e"):
            if _ID.fullmatch(event_id):
                yield from self._events(
                    "SELECT json FROM event WHERE id = ?", bytes.fromhex(event_id)
                )
        for address in deletion.tag_values("a"):
            key = self.keys.address_text(address)
            yield from self._events(
                "SELECT json FROM event WHERE address = ? AND rank >= ?", key, -deletion.created_at
            )

    def _events(self, statement: str, *values: object) -> list[Event]:
        rows = self._db.execute(statement, values).fetchall()
        return [parse_event_json_untrusted(text) for (text,) in rows]

    def _insert(
        self, event: Event, address: int | None, ends_at: int | None, budget: Budget
    ) -> None:
        event_id, rank, keys = bytes.fromhex(event.id), -event.created_at, self.keys.of(event)
        size = len(event.json) + EVENT_BYTES + TAG_BYTES * len(keys)
        row = (event_id, bytes.fromhex(event.pubkey), event.kind, rank, address, ends_at, budget)
        self._db.execute(
            "INSERT INTO event (id, author, kind, rank, address, expires_at, budget, bytes, json)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, size, event.json),
        )
        self._db.executemany(
            "INSERT INTO tag VALUES (?, ?, ?, ?)",
            [(key, rank, event_id, event.kind) for key in keys],
        )

    def _forget(self, event: Event) -> None:
        event_id, rank = bytes.fromhex(event.id), -event.created_at
        self._db.executemany(
            "DELETE FROM tag WHERE key = ? AND rank = ? AND id = ?",
            [(key, rank, event_id) for key in self.keys.of(event)],
        )
        self._db.execute("DELETE FROM event WHERE id = ?", (event_id,))

    def _evict(self, budget: Budget) -> None:
        room = self._rooms[budget]
        while True:
            total = "SELECT events, bytes FROM total WHERE budget = ?"
            ((events, size),) = self._db.execute(total, (budget,))
            if events <= room.events and size <= room.bytes:
                return
            self._evict_one(budget)

    def _evict_one(self, budget: Budget) -> None:
        # By bytes, in which each event counts for more than its text: who has most of either.
        most = "SELECT author FROM author WHERE budget = ? ORDER BY bytes DESC, since LIMIT 1"
        ((author,),) = self._db.execute(most, (budget,))
        (oldest,) = self._events(
            "SELECT json FROM event INDEXED BY event_author WHERE author = ? AND budget = ?"
            " ORDER BY rank DESC, id DESC LIMIT 1",
            author,
            budget,
        )
        self._forget(oldest)


def _ends_at(event: Event) -> int | None:
    """NIP-40's expiration; one that is no number has passed already."""
    return (expiration_of(event) or 0) if event.tag("expiration") is not None else None


def _deletion_ends_at(now: int, ends: list[int]) -> int:
    return min(max([now, *ends]), now + LONGEST_S) + GRACE_S


def _is_newer(event: Event, current: Event) -> bool:
    # NIP-01: of two with the same time, the lower id stays.
    return (event.created_at, current.id) > (current.created_at, event.id)
