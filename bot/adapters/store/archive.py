"""`handlers.tables.Archive`. What was never paid is not kept: it leaves without a trace."""

import sqlite3

from bot.adapters.store.containers import SqliteContainers
from handlers.domain.ledger import MAIN_WALLET
from handlers.domain.lifecycle import State
from handlers.domain.pricing import Tariff
from handlers.records import Container


class SqliteArchive:
    """Table ``archive``."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def fill(self, ended_before: int, left_msat: int, limit: int) -> int:
        # What was told of it must have been taken back, and nothing of it be on its way or waited for.
        ended = (
            "SELECT pubkey FROM container WHERE state = 'stopped' AND state_since < ? "
            "AND EXISTS (SELECT 1 FROM announcement a WHERE a.container = pubkey AND a.event_id IS NULL "
            "            AND a.revision = container.revision) "
            "AND 'container:' || pubkey NOT IN (SELECT source FROM outgoing WHERE state = 'unknown') "
            "AND NOT EXISTS (SELECT 1 FROM invoice i WHERE i.container = pubkey AND i.state = 'open') "
            "AND coalesce((SELECT balance_msat FROM account WHERE name = 'container:' || pubkey), 0) < 1000 "
            # A wallet's account is minus what it holds.
            "AND (wallet = ? OR coalesce((SELECT -balance_msat FROM account WHERE name = wallet), 0) < ?) LIMIT ?"
        )
        values = (ended_before, MAIN_WALLET, left_msat, limit)
        pubkeys = [row[0] for row in self._db.execute(ended, values)]
        for pubkey in pubkeys:
            self._archive_one(pubkey)
        return len(pubkeys)

    def find(self, pubkey: str) -> Container | None:
        sql = "SELECT pubkey, secret, admin, wallet, image, units, created_at, ended_at FROM archive WHERE pubkey = ?"
        row = self._db.execute(sql, (pubkey,)).fetchone()
        return _ended(row) if row is not None else None

    def bring_back(self, pubkey: str) -> None:
        row = self.find(pubkey)
        if row is not None:
            SqliteContainers(self._db).add(row)
            self._db.execute("DELETE FROM archive WHERE pubkey = ?", (pubkey,))

    def _archive_one(self, pubkey: str) -> None:
        # What was never paid leaves without a trace: whoever cares for it has lost nothing.
        self._db.execute(
            "INSERT INTO archive (pubkey, secret, admin, wallet, image, units, created_at, ended_at) "
            "SELECT pubkey, secret, admin, wallet, image, units, created_at, state_since FROM container "
            "WHERE pubkey = ? AND EXISTS (SELECT 1 FROM account WHERE name = 'container:' || pubkey)",
            (pubkey,),
        )
        for table, column in (("meter", "container"), ("announcement", "container"), ("port", "container"),
                              ("container", "pubkey")):  # fmt: skip
            self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (pubkey,))


def _ended(row: sqlite3.Row) -> Container:
    """What can still matter of it; the rest was not kept."""
    return Container(
        pubkey=row["pubkey"],
        secret=row["secret"],
        admin=row["admin"],
        name=row["image"].partition("@")[0].rpartition("/")[2][:31],
        asked_for=row["image"],
        image=row["image"],
        units=row["units"],
        tariff=Tariff(),
        state=State.STOPPED,
        state_since=row["ended_at"],
        created_at=row["created_at"],
        wallet=row["wallet"],
    )
