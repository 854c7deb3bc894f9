"""One connection, one worker, WAL, every commit on disk before `write` returns.

A transaction runs in a worker thread, alone; it commits when its function returns and rolls back when that raises.
"""

import sqlite3
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import trio

from bot.adapters.store.announcements import SqliteAnnouncements
from bot.adapters.store.archive import SqliteArchive
from bot.adapters.store.containers import SqliteContainers
from bot.adapters.store.invoices import SqliteInvoices
from bot.adapters.store.ledger import SqliteLedger
from bot.adapters.store.meters import SqliteMeters
from bot.adapters.store.outbox import SqliteOutbox
from bot.adapters.store.outgoing import SqlitePayments
from bot.adapters.store.ports import SqlitePorts
from bot.adapters.store.quotes import SqliteQuotes
from bot.files import closed_on_failure
from handlers.tables import StoreUnavailable, Tx

T = TypeVar("T")
P = ParamSpec("P")
# What SQLite says when the disk, not we, is at fault.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


class SqliteTx:
    """`handlers.tables.Tx`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.containers = SqliteContainers(db)
        self.archive = SqliteArchive(db)
        self.ports = SqlitePorts(db)
        self.quotes = SqliteQuotes(db)
        self.invoices = SqliteInvoices(db)
        self.outgoing = SqlitePayments(db)
        self.ledger = SqliteLedger(db)
        self.meters = SqliteMeters(db)
        self.outbox = SqliteOutbox(db)
        self.announcements = SqliteAnnouncements(db)


class SqliteStore:
    """`handlers.tables.Store`."""

    def __init__(self, path: Path) -> None:
        """Open and migrate. The file holds secrets: only its owner may read it."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        with closed_on_failure(self._db):
            self._db.row_factory = sqlite3.Row
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 5000"):
                self._db.execute(f"PRAGMA {pragma}")
            migrate(self._db)
        self._one_at_a_time = trio.CapacityLimiter(1)

    async def read(
        self, work: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await self._run("BEGIN", _bind(work, args, kwargs))

    async def write(
        self, work: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        # IMMEDIATE takes the write lock before anything is read: what a check saw still holds at commit.
        return await self._run("BEGIN IMMEDIATE", _bind(work, args, kwargs))

    async def _run(self, begin: str, work: Callable[[Tx], T]) -> T:
        return await trio.to_thread.run_sync(
            self._transaction, begin, work, limiter=self._one_at_a_time
        )

    def _transaction(self, begin: str, work: Callable[[Tx], T]) -> T:
        try:
            self._db.execute(begin)
            result = work(SqliteTx(self._db))
            self._db.execute("COMMIT")
        except BaseException as error:
            # A full disk ends the transaction by itself: rolling back again would hide the cause.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError) and _is_the_disks(error):
                raise StoreUnavailable(
                    "nothing can be written here now: the disk is full"
                ) from error
            raise
        return result

    def close(self) -> None:
        self._db.close()


def _bind(
    work: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, object]
) -> Callable[[Tx], T]:
    return lambda tx: work(tx, *args, **kwargs)


def _is_the_disks(error: sqlite3.OperationalError) -> bool:
    # Extended codes carry the primary one in their lowest byte.
    return (error.sqlite_errorcode & 0xFF) in _FULL


def migrate(db: sqlite3.Connection) -> None:
    """Apply every numbered file that this database has not seen, each in a transaction of its own.

    Foreign keys are checked at the end of each, not within: SQLite changes a constraint only by making the table
    anew, and the rows that point to it must stay meanwhile (sqlite.org/lang_altertable.html, section 7).
    """
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    folder = files("bot.adapters.store").joinpath("migrations")
    scripts = sorted(
        (f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name
    )
    if version > len(scripts):
        raise RuntimeError(
            f"the database is of version {version}, newer than this program ({len(scripts)})"
        )
    db.execute("PRAGMA foreign_keys = OFF")
    for number, script in enumerate(scripts, start=1):
        if number > version:
            _apply(db, script.read_text(), number)
    db.execute("PRAGMA foreign_keys = ON")


def _apply(db: sqlite3.Connection, script: str, number: int) -> None:
    try:
        db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number};")
        if db.execute("PRAGMA foreign_key_check").fetchone() is not None:
            raise RuntimeError(f"migration {number} leaves rows that point to nothing")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
