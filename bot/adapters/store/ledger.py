"""`handlers.tables.Ledger`: entries and postings are append-only, an account's balance is kept beside them."""

import sqlite3

from bot.adapters.store.rows import number
from handlers.domain.ledger import Entry


class SqliteLedger:
    """Tables ``entry``, ``posting``, ``account``."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def post(self, entry: Entry, at: int) -> bool:
        done = self._db.execute(
            "INSERT OR IGNORE INTO entry (key, at) VALUES (?, ?)", (entry.key, at)
        )
        if done.rowcount == 0:
            return False
        for account, amount_msat in entry.postings.items():
            self._move(account, amount_msat)
            self._db.execute(
                "INSERT INTO posting (entry_id, account, amount_msat) VALUES (?, ?, ?)",
                (done.lastrowid, account, amount_msat),
            )
        return True

    def _move(self, account: str, amount_msat: int) -> None:
        # An INSERT … ON CONFLICT would be checked against the CHECK with the posting alone.
        self._db.execute(
            "INSERT OR IGNORE INTO account (name, balance_msat) VALUES (?, 0)", (account,)
        )
        self._db.execute(
            "UPDATE account SET balance_msat = balance_msat + ? WHERE name = ?",
            (amount_msat, account),
        )

    def balance(self, account: str) -> int:
        sql = "SELECT coalesce(sum(balance_msat), 0) FROM account WHERE name = ?"
        return number(self._db, sql, account)

    def owed_from(self, wallet: str) -> int:
        # An account whose container is in neither table was never paid to: its balance is zero.
        sql = (
            "SELECT coalesce(sum(balance_msat), 0) FROM account JOIN "
            "(SELECT pubkey, wallet FROM container UNION ALL SELECT pubkey, wallet FROM archive) "
            "ON name = 'container:' || pubkey WHERE wallet = ?"
        )
        return number(self._db, sql, wallet)
