"""`handlers.tables.Invoices`."""

import sqlite3
from dataclasses import asdict

from bot.adapters.store.rows import due_values, insert, is_due, plain
from handlers.records import InvoiceRecord, InvoiceState

_COLUMNS = (
    "payment_hash, container, bolt11, amount_msat, created_at, expires_at, wallet, state, next_look_at, answered_at, "
    "zap_request, anonymous"
)


class SqliteInvoices:
    """Table ``invoice``."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def find(self, payment_hash: str) -> InvoiceRecord | None:
        found = self._list("WHERE payment_hash = ?", payment_hash)
        return found[0] if found else None

    def add(self, invoice: InvoiceRecord) -> None:
        insert(self._db, "invoice", plain(asdict(invoice)))

    def save(self, invoice: InvoiceRecord) -> None:
        self._db.execute(
            "UPDATE invoice SET state = ?, next_look_at = ?, answered_at = ? WHERE payment_hash = ?",
            (invoice.state.value, invoice.next_look_at, invoice.answered_at, invoice.payment_hash),
        )

    def list_due(self, now: int, limit: int) -> list[InvoiceRecord]:
        where = f"WHERE state = 'open' AND {is_due('next_look_at')} ORDER BY next_look_at LIMIT ?"
        return self._list(where, *due_values(now), limit)

    def list_open_of(self, container: str) -> list[InvoiceRecord]:
        where = "WHERE state = 'open' AND container = ? AND NOT anonymous ORDER BY created_at"
        return self._list(where, container)

    def put_off_of(self, container: str, past_expiry_s: int, until: int) -> None:
        self._db.execute(
            "UPDATE invoice SET next_look_at = min(expires_at + ?, ?) WHERE state = 'open' AND container = ?",
            (past_expiry_s, until, container),
        )

    def put_off_anonymous_of(
        self, container: str, past_expiry_s: int, until: int, *, but_newest: int
    ) -> None:
        # What was put off already is so late that it is past its end.
        older = (
            "SELECT payment_hash FROM invoice WHERE state = 'open' AND container = ? AND anonymous "
            "AND next_look_at <= expires_at ORDER BY created_at DESC LIMIT -1 OFFSET ?"
        )
        self._db.execute(
            f"UPDATE invoice SET next_look_at = min(expires_at + ?, ?) WHERE payment_hash IN ({older})",
            (past_expiry_s, until, container, but_newest),
        )

    def prune(self, before: int) -> None:
        self._db.execute(
            "DELETE FROM invoice WHERE state = 'closed' AND created_at < ?", (before,)
        )

    def _list(self, where: str, *values: object) -> list[InvoiceRecord]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM invoice {where}", values)
        return [_invoice(dict(row)) for row in rows]


def _invoice(row: dict[str, object]) -> InvoiceRecord:
    typed = {"state": InvoiceState(row["state"]), "anonymous": bool(row["anonymous"])}
    return InvoiceRecord(**{**row, **typed})  # type: ignore[arg-type]
