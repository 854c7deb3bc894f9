"""Event ids that were admitted, so that none is acted on twice, also across restarts.

Its own file with ``synchronous=NORMAL``: an id must survive the death of the process, which WAL gives
without an fsync (against the loss of the machine the freshness window protects). A commit is then one
write into the page cache, cheaper than a hop to a worker thread, so it is made right here; requests that
come together share it. What does wait for the disk, the checkpoint, runs in a worker; only under a flood, when
the log would grow too long until then, it is made right here.

An id is forgotten when its time has passed by the wall clock and by the time since boot: a wall clock that
jumps ahead and back again must not make an event new again.
"""

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from bot.clock import Clock
from bot.files import closed_on_failure

log = structlog.get_logger()
# Some 30 MB of memory.
MOST_IDS = 100_000
PRUNED_AT_ONCE = 500
# Of 4 KiB. An id costs more than a page, and the log never shrinks while we live: a minute's flood made hundreds of MB.
MOST_LOG_PAGES = 4_000
# For ids of files that do not tell: as long as anything was kept.
OLD_KEEP_S = 1_200


@dataclass
class _Batch:
    rows: list[tuple[bytes, int, int]] = field(default_factory=list)
    written: bool = False


class SeenStore:
    """Remembers up to ``most`` ids, each for as long as was asked. Who records heeds `is_full` first."""

    def __init__(self, path: Path, clock: Clock, most: int = MOST_IDS) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path, self._clock, self._most = path, clock, most
        self._db = sqlite3.connect(path, isolation_level=None)
        with closed_on_failure(self._db):
            log_pages = f"wal_autocheckpoint = {MOST_LOG_PAGES}"
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", log_pages):
                self._db.execute(f"PRAGMA {pragma}")
            self._make_table()
            # How long the machine was off, nobody knows: all that is on file is kept its whole time once more.
            boot_s = clock.boot_ms() // 1_000
            # Until when: Unix time and time since boot, in seconds. Plain tuples, which the collector leaves alone.
            self._until = {
                event_id: (until, boot_s + keep_s)
                for event_id, until, keep_s in self._db.execute(
                    "SELECT id, until, keep_s FROM kept"
                )
            }
        self._batch = _Batch()
        self._unwritten: list[tuple[bytes, int, int]] = []

    def _make_table(self) -> None:
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS kept "
            "(id BLOB PRIMARY KEY, until INTEGER NOT NULL, keep_s INTEGER NOT NULL) WITHOUT ROWID"
        )
        old = self._db.execute("SELECT name FROM sqlite_master WHERE name = 'seen'").fetchall()
        if old:
            rows = [
                (bytes.fromhex(i), until, OLD_KEEP_S)
                for i, until in self._db.execute("SELECT id, until FROM seen")
            ]
            self._write("INSERT OR IGNORE INTO kept VALUES (?, ?, ?)", rows)
            self._db.execute("DROP TABLE seen")

    @property
    def is_full(self) -> bool:
        return len(self._until) >= self._most

    def __contains__(self, event_id: str) -> bool:
        return bytes.fromhex(event_id) in self._until

    async def record(self, event_id: str, keep_s: int) -> None:
        """Return when the id is written. From the first moment on, the id counts as seen."""
        key, until = bytes.fromhex(event_id), self._clock.now() + keep_s
        self._until[key] = (until, self._clock.boot_ms() // 1_000 + keep_s)
        batch = self._batch
        batch.rows.append((key, until, keep_s))
        # Everybody who is ready now adds an id; whoever comes back first writes them all.
        await trio.lowlevel.checkpoint()
        if not batch.written:
            self._commit(batch)

    def _commit(self, batch: _Batch) -> None:
        if batch is self._batch:
            self._batch = _Batch()
        batch.written = True
        rows = self._unwritten + batch.rows
        try:
            self._write("INSERT OR IGNORE INTO kept VALUES (?, ?, ?)", rows)
            self._unwritten = []
        except sqlite3.OperationalError as error:
            # A full disk must not silence us: the ids are kept in memory and written with later ones. What changes
            # something cannot be written either, so nobody gains by replaying it after a crash.
            if not self._unwritten:
                log.error("ids cannot be written", reason=str(error))
            self._unwritten = rows[-self._most :]

    def _write(self, sql: str, rows: list[tuple[bytes, int, int]] | list[tuple[bytes]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(sql, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error:
            # A disk that is full for a moment must not leave a transaction open for good.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    async def prune(self) -> int:
        """Forget what could not be admitted again anyway; how many ids were forgotten."""
        now, boot_s = self._clock.now(), self._clock.boot_ms() // 1_000
        old = [
            event_id
            for event_id, (until, until_boot_s) in self._until.items()
            if until < now and until_boot_s < boot_s
        ]
        for event_id in old:
            del self._until[event_id]
        for first in range(0, len(old), PRUNED_AT_ONCE):
            some = [(event_id,) for event_id in old[first : first + PRUNED_AT_ONCE]]
            self._write("DELETE FROM kept WHERE id = ?", some)
            await trio.lowlevel.checkpoint()
        await trio.to_thread.run_sync(self._checkpoint)
        return len(old)

    def _checkpoint(self) -> None:
        # PASSIVE never makes a writer wait.
        with closing(sqlite3.connect(self._path)) as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        self._db.close()
