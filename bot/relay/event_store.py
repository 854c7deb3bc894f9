"""What a relay remembers: NIP-01's regular, replaceable and addressable events, NIP-09, NIP-40.

In memory, with indexes by author, kind and ``p`` tag; optionally written through to SQLite.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from heapq import nlargest
from pathlib import Path
from typing import TypeVar

from nips import kinds
from nips.event import Event, parse_event_json_untrusted
from nips.filters import Filter
from nips.nip40 import is_expired

Address = tuple[int, str, str]
K = TypeVar("K")


class EventStore:
    """At most ``max_events`` and ``max_bytes``; when full, the oldest go first, but never pinned ones."""

    def __init__(self, max_events: int, max_bytes: int, path: Path | None = None) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._bytes = 0
        self._pinned: set[str] = set()
        self._by_id: dict[str, Event] = {}
        self._by_author: defaultdict[str, set[str]] = defaultdict(set)
        self._by_kind: defaultdict[int, set[str]] = defaultdict(set)
        self._by_p: defaultdict[str, set[str]] = defaultdict(set)
        self._by_address: dict[Address, str] = {}
        # (author, id) and (author, address, created_at): what was deleted must not come back.
        self._deleted_ids: set[tuple[str, str]] = set()
        self._deleted_addresses: dict[Address, int] = {}
        self._db = _open(path) if path is not None else None
        if self._db is not None:
            for (text,) in self._db.execute(
                "SELECT event FROM event ORDER BY created_at"
            ).fetchall():
                self._add(parse_event_json_untrusted(text))

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, event: Event, *, pinned: bool = False) -> str:
        """Store it. An empty string when it is new, else NIP-01's reason why it is not kept.

        ``pinned`` events, our own, are not pushed out by what strangers send.
        """
        if event.id in self._by_id:
            return "duplicate: already have this event"
        reason = self._add(event)
        if pinned and not reason:
            self._pinned.add(event.id)
        if not reason and self._db is not None:
            self._db.execute(
                "INSERT OR REPLACE INTO event VALUES (?, ?, ?)",
                (event.id, event.created_at, event.json.decode()),
            )
        return reason

    def _add(self, event: Event) -> str:
        address = _address(event)
        if (event.pubkey, event.id) in self._deleted_ids:
            return "blocked: this event was deleted by its author"
        if address is not None:
            if event.created_at <= self._deleted_addresses.get(address, -1):
                return "blocked: this event was deleted by its author"
            current = self._by_id.get(self._by_address.get(address, ""))
            if current is not None and not _is_newer(event, current):
                return "duplicate: have a newer event"
            if current is not None:
                self._forget(current.id)
            self._by_address[address] = event.id
        if event.kind == kinds.DELETION:
            self._delete_what(event)
        self._index(event)
        while len(self._by_id) > self._max_events or self._bytes > self._max_bytes:
            oldest = next((i for i in self._by_id if i not in self._pinned), None)
            if oldest is None:
                break
            self._forget(oldest)
        return ""

    def _index(self, event: Event) -> None:
        self._by_id[event.id] = event
        self._bytes += len(event.json)
        self._by_author[event.pubkey].add(event.id)
        self._by_kind[event.kind].add(event.id)
        for pubkey in event.tag_values("p"):
            self._by_p[pubkey].add(event.id)

    def _forget(self, event_id: str) -> None:
        event = self._by_id.pop(event_id)
        self._bytes -= len(event.json)
        self._pinned.discard(event_id)
        _discard(self._by_author, event.pubkey, event_id)
        _discard(self._by_kind, event.kind, event_id)
        for pubkey in event.tag_values("p"):
            _discard(self._by_p, pubkey, event_id)
        address = _address(event)
        if address is not None and self._by_address.get(address) == event_id:
            del self._by_address[address]
        if event.kind == kinds.DELETION:
            # What it deleted is remembered only as long as the deletion itself.
            self._deleted_ids -= {(event.pubkey, deleted) for deleted in event.tag_values("e")}
        if self._db is not None:
            self._db.execute("DELETE FROM event WHERE id = ?", (event_id,))

    def _delete_what(self, deletion: Event) -> None:
        for event_id in deletion.tag_values("e"):
            self._deleted_ids.add((deletion.pubkey, event_id))
            found = self._by_id.get(event_id)
            # Only one's own events, and never a deletion itself (NIP-09).
            if (
                found is not None
                and found.pubkey == deletion.pubkey
                and found.kind != kinds.DELETION
            ):
                self._forget(event_id)
        for text in deletion.tag_values("a"):
            kind, _, rest = text.partition(":")
            pubkey, _, identifier = rest.partition(":")
            if (
                pubkey == deletion.pubkey
                and kind.isascii()
                and kind.isdecimal()
                and len(kind) <= 5
            ):
                self._delete_address((int(kind), pubkey, identifier), deletion.created_at)

    def _delete_address(self, address: Address, until: int) -> None:
        self._deleted_addresses[address] = max(until, self._deleted_addresses.get(address, -1))
        found = self._by_id.get(self._by_address.get(address, ""))
        if found is not None and found.created_at <= until:
            self._forget(found.id)

    def query(self, filters: Iterable[Filter], now: int, max_limit: int) -> list[Event]:
        """What matches, newest first, each filter cut to its limit."""
        found: dict[str, Event] = {}
        for wanted in filters:
            limit = min(max_limit, wanted.limit if wanted.limit is not None else max_limit)
            newest = nlargest(
                limit, self._matching(wanted, now), key=lambda e: (e.created_at, e.id)
            )
            found |= {event.id: event for event in newest}
        return sorted(found.values(), key=lambda e: (-e.created_at, e.id))

    def count(self, filters: Iterable[Filter], now: int) -> int:
        """NIP-45: how many match, regardless of limits."""
        return len({event.id for wanted in filters for event in self._matching(wanted, now)})

    def _matching(self, wanted: Filter, now: int) -> Iterator[Event]:
        for event_id in self._candidates(wanted):
            event = self._by_id.get(event_id)
            if event is not None and wanted.matches(event) and not is_expired(event, now):
                yield event

    def _candidates(self, wanted: Filter) -> Iterable[str]:
        # The most selective index that the filter names; the filter itself decides afterwards.
        if wanted.ids is not None:
            return wanted.ids
        if "p" in wanted.tags:
            return set().union(*(self._by_p.get(p, ()) for p in wanted.tags["p"]))
        if wanted.authors is not None:
            return set().union(*(self._by_author.get(a, ()) for a in wanted.authors))
        if wanted.kinds is not None:
            return set().union(*(self._by_kind.get(k, ()) for k in wanted.kinds))
        return list(self._by_id)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    # Events can be fetched again from other relays: losing the last ones with the machine is fine.
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(
        "CREATE TABLE IF NOT EXISTS event (id TEXT PRIMARY KEY, created_at INTEGER, event TEXT)"
    )
    return db


def _discard(index: dict[K, set[str]], key: K, event_id: str) -> None:
    found = index.get(key)
    if found is not None:
        found.discard(event_id)
        if not found:
            del index[key]


def _address(event: Event) -> Address | None:
    if kinds.is_replaceable(event.kind):
        return event.kind, event.pubkey, ""
    if kinds.is_addressable(event.kind):
        return event.kind, event.pubkey, event.tag("d") or ""
    return None


def _is_newer(event: Event, current: Event) -> bool:
    # NIP-01: of two with the same time, the lower id stays.
    return (event.created_at, current.id) > (current.created_at, event.id)
