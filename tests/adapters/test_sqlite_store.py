"""The store's file: private, append-only where it must be, all or nothing."""

import sqlite3
import stat

import pytest

from bot.adapters.store.sqlite import SqliteStore, migrate
from handlers.domain.ledger import Entry


def test_the_database_is_private_and_refuses_a_future_version(tmp_path):
    path = tmp_path / "state" / "enclaved.sqlite"
    SqliteStore(path).close()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    db = sqlite3.connect(path, isolation_level=None)
    settings = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode",)]
    db.execute("PRAGMA user_version = 999")
    db.close()
    assert ["wal"] == settings
    with pytest.raises(RuntimeError, match="newer"):
        SqliteStore(path)


def test_the_ledger_cannot_be_rewritten(tmp_path):
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db)
    db.execute("INSERT INTO account VALUES ('a', 0)")
    db.execute("INSERT INTO entry (key, at) VALUES ('k', 0)")
    for statement in ("DELETE FROM entry", "UPDATE entry SET at = 1"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(statement)
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("INSERT INTO account VALUES ('container:x', -1)")
    db.close()


async def test_a_transaction_that_raises_leaves_nothing_behind(world):
    def breaks(tx):
        tx.ledger.post(Entry("k", {"container:a": 1, "wallet:main": -1}), 0)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        await world.store.write(breaks)
    assert 0 == await world.balance("container:a")
    assert await world.store.write(
        lambda tx: tx.ledger.post(Entry("k", {"container:a": 1, "wallet:main": -1}), 0)
    )
