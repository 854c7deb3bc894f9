"""Event ids that were admitted, so that none is acted on twice, also across restarts.

Its own file with ``synchronous=NORMAL``: an id must survive the death of the process, which WAL gives
without an fsync (against the loss of the machine the freshness window protects). A commit is then one
write into the page cache, cheaper than a hop to a worker thread, so it is made right here; requests that
come together share it. What does wait for the disk, the checkpoint, runs in a worker.
"""

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import trio


@dataclass
class _Batch:
    rows: list[tuple[str, int]] = field(default_factory=list)
    written: bool = False


class SeenStore:
    """Remembers ids until their freshness window has passed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "wal_autocheckpoint = 0"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID"
        )
        self._until: dict[str, int] = dict(
            self._db.execute("SELECT id, until FROM seen").fetchall()
        )
        self._batch = _Batch()

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._until

    async def record(self, event_id: str, until: int) -> None:
        """Return when the id is written. From the first moment on, the id counts as seen."""
        self._until[event_id] = until
        batch = self._batch
        batch.rows.append((event_id, until))
        # Everybody who is ready now adds an id; whoever comes back first writes them all.
        await trio.lowlevel.checkpoint()
        if not batch.written:
            self._commit(batch)

    def _commit(self, batch: _Batch) -> None:
        if batch is self._batch:
            self._batch = _Batch()
        self._write(batch.rows)
        batch.written = True

    def _write(self, rows: list[tuple[str, int]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error:
            # A disk that is full for a moment must not leave a transaction open for good.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    async def prune(self, now: int) -> int:
        """Forget what could not be admitted again anyway; how many ids were forgotten."""
        old = [event_id for event_id, until in self._until.items() if until < now]
        for event_id in old:
            del self._until[event_id]
        self._db.execute("DELETE FROM seen WHERE until < ?", (now,))
        await trio.to_thread.run_sync(self._checkpoint)
        return len(old)

    def _checkpoint(self) -> None:
        # PASSIVE never makes a writer wait.
        with closing(sqlite3.connect(self._path)) as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        self._db.close()
