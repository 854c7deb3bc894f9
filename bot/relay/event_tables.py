"""The tables in which events lie, and the keys under which they are found.

Order: `rank` is minus ``created_at``, so that an index over (rank, id), read forwards, is NIP-01's order.
Keys: a tag's value, an address or a deletion's target may be a quarter of a megabyte of a stranger's text, so
indexes hold 64 bits of a hash of it. The hash has a secret of this database: nobody can make two alike.
"""

import secrets
import sqlite3
from collections.abc import Iterable
from enum import IntEnum
from hashlib import blake2b
from pathlib import Path

from bot.files import closed_on_failure
from nips import kinds
from nips.event import Event

VERSION = 1
# What an event and each of its tags in the index take up in the file beside the event's own text.
EVENT_BYTES, TAG_BYTES = 600, 120
# To which its log is cut back.
LOG_BYTES = 8 << 20


class Budget(IntEnum):
    """Whose room an event takes up. No class reaches into another's."""

    STRANGERS = 0
    # The wallet, escrow services, containers: known to the server, heard from outside.
    SERVED = 1
    # Published by this server itself.
    OWN = 2


SCHEMA = """
CREATE TABLE event (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    author BLOB NOT NULL,
    kind INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    address INTEGER,
    expires_at INTEGER,
    budget INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    json BLOB NOT NULL
) STRICT;
CREATE INDEX event_time ON event (rank, id);
CREATE INDEX event_author ON event (author, rank, id, kind, budget);
CREATE INDEX event_kind ON event (kind, rank, id);
CREATE UNIQUE INDEX event_address ON event (address) WHERE address IS NOT NULL;
CREATE INDEX event_expiry ON event (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE tag (
    key INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    id BLOB NOT NULL,
    kind INTEGER NOT NULL,
    PRIMARY KEY (key, rank, id)
) STRICT, WITHOUT ROWID;

-- How much each author takes up, and each class: kept by the triggers below.
CREATE TABLE author (
    budget INTEGER NOT NULL,
    author BLOB NOT NULL,
    events INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    since INTEGER NOT NULL,
    PRIMARY KEY (budget, author)
) STRICT, WITHOUT ROWID;
CREATE INDEX author_bytes ON author (budget, bytes DESC, since);
CREATE TABLE total (
    budget INTEGER PRIMARY KEY,
    events INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) STRICT;
INSERT INTO total VALUES (0, 0, 0), (1, 0, 0), (2, 0, 0);

CREATE TRIGGER event_in AFTER INSERT ON event BEGIN
    INSERT INTO author VALUES (new.budget, new.author, 1, new.bytes, new.seq)
        ON CONFLICT DO UPDATE SET events = events + 1, bytes = bytes + new.bytes;
    UPDATE total SET events = events + 1, bytes = bytes + new.bytes WHERE budget = new.budget;
END;
CREATE TRIGGER event_out AFTER DELETE ON event BEGIN
    UPDATE author SET events = events - 1, bytes = bytes - old.bytes
        WHERE budget = old.budget AND author = old.author;
    DELETE FROM author WHERE budget = old.budget AND author = old.author AND events = 0;
    UPDATE total SET events = events - 1, bytes = bytes - old.bytes WHERE budget = old.budget;
END;
CREATE TRIGGER event_moved AFTER UPDATE OF budget ON event BEGIN
    UPDATE author SET events = events - 1, bytes = bytes - old.bytes
        WHERE budget = old.budget AND author = old.author;
    DELETE FROM author WHERE budget = old.budget AND author = old.author AND events = 0;
    UPDATE total SET events = events - 1, bytes = bytes - old.bytes WHERE budget = old.budget;
    INSERT INTO author VALUES (new.budget, new.author, 1, new.bytes, new.seq)
        ON CONFLICT DO UPDATE SET events = events + 1, bytes = bytes + new.bytes;
    UPDATE total SET events = events + 1, bytes = bytes + new.bytes WHERE budget = new.budget;
END;

-- Whose events this relay keeps, remembered so that it knows them from its first second on.
CREATE TABLE served (
    who TEXT NOT NULL,
    author BLOB NOT NULL,
    PRIMARY KEY (who, author)
) STRICT, WITHOUT ROWID;
CREATE TABLE secret (bytes BLOB NOT NULL) STRICT;
"""


def open_tables(path: Path, max_bytes: int) -> tuple[sqlite3.Connection, list[bytes]]:
    """The writing connection, and the events of an earlier layout, which its caller adds again and commits.

    Raises `sqlite3.DatabaseError` for a file that is none, and `RuntimeError` for one of a later version.
    """
    path.touch(mode=0o600)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with closed_on_failure(db):
        db.execute("PRAGMA journal_mode = WAL")
        # Events can be fetched again from other relays: losing the last ones with the machine is fine.
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        db.execute("PRAGMA cache_size = -4000")
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
        db.execute(f"PRAGMA max_page_count = {max_bytes // page_bytes}")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise RuntimeError(f"{path} was written by a newer version")
        return db, [] if version == VERSION else _create(db)


def _create(db: sqlite3.Connection) -> list[bytes]:
    earlier: list[bytes] = []
    db.execute("BEGIN IMMEDIATE")
    if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'event'").fetchone():
        rows = db.execute("SELECT event FROM event ORDER BY created_at").fetchall()
        earlier = [text.encode() for (text,) in rows]
        db.execute("DROP TABLE event")
    for statement in _statements(SCHEMA):
        db.execute(statement)
    db.execute("INSERT INTO secret VALUES (?)", (secrets.token_bytes(32),))
    db.execute(f"PRAGMA user_version = {VERSION}")
    return earlier


def _statements(script: str) -> Iterable[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


class Keys:
    """64-bit keys of texts, one namespace per purpose."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _key(self, text: str) -> int:
        digest = blake2b(text.encode(errors="surrogatepass"), digest_size=8, key=self._secret)
        return int.from_bytes(digest.digest(), "big", signed=True)

    def tag(self, name: str, value: str) -> int:
        return self._key(f"tag {name} {value}")

    def deleted(self, author: str, target: str) -> int:
        """``target``: an event's id or an address, as in a deletion's ``e`` or ``a`` tag."""
        return self._key(f"deleted {author} {target}")

    def address(self, event: Event) -> int | None:
        """Of what only the newest is kept; None for a regular event."""
        text = address_of(event)
        return None if text is None else self.address_text(text)

    def address_text(self, text: str) -> int:
        """Of an address as it stands in an ``a`` tag."""
        return self._key(f"address {text}")

    def of(self, event: Event) -> set[int]:
        """Under which an event stands in the tag table."""
        keys = {
            self.tag(tag[0], tag[1])
            for tag in event.tags
            if len(tag) > 1 and len(tag[0]) == 1 and tag[0].isascii() and tag[0].isalpha()
        }
        if event.kind == kinds.DELETION:
            targets = [*event.tag_values("e"), *event.tag_values("a")]
            keys |= {self.deleted(event.pubkey, target) for target in targets}
        return keys


def address_of(event: Event) -> str | None:
    """``kind:pubkey:d`` (NIP-01), None for an event that has no address."""
    if kinds.is_replaceable(event.kind):
        return f"{event.kind}:{event.pubkey}:"
    if kinds.is_addressable(event.kind):
        return f"{event.kind}:{event.pubkey}:{event.tag('d') or ''}"
    return None
