"""`handlers.tables.Payments`."""

import sqlite3
from dataclasses import asdict

from bot.adapters.store.rows import due_values, insert, is_due, plain, update
from handlers.domain.fees import SMALL_MSAT, WorstFees
from handlers.records import Outgoing, OutgoingState

_COLUMNS = (
    "payment_id, payment_hash, bolt11, source, wallet, amount_msat, fee_reserve_msat, created_at, valid_until, state, "
    "to_wallet, next_look_at, fees_msat, seen_unsettled, told"
)


class SqlitePayments:
    """Table ``outgoing``."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def find(self, payment_id: str) -> Outgoing | None:
        return self._first("WHERE payment_id = ?", payment_id)

    def find_by_hash(self, payment_hash: str) -> Outgoing | None:
        return self._first("WHERE payment_hash = ?", payment_hash)

    def find_last_sweep_of(self, wallet: str) -> Outgoing | None:
        where = "WHERE wallet = ? AND to_wallet IS NOT NULL ORDER BY created_at DESC LIMIT 1"
        return self._first(where, wallet)

    def find_witness(self, other_than: str, *, unsettled: bool) -> Outgoing | None:
        seen = "seen_unsettled" if unsettled else "state = 'settled'"
        return self._first(
            f"WHERE {seen} AND payment_id <> ? ORDER BY created_at DESC LIMIT 1", other_than
        )

    def list_due(self, now: int, limit: int) -> list[Outgoing]:
        where = (
            f"WHERE state = 'unknown' AND {is_due('next_look_at')} ORDER BY next_look_at LIMIT ?"
        )
        return self._list(where, *due_values(now), limit)

    def list_unknown(self) -> list[Outgoing]:
        return self._list("WHERE state = 'unknown' ORDER BY created_at")

    def save(self, outgoing: Outgoing) -> None:
        columns = plain(asdict(outgoing))
        if not update(self._db, "outgoing", columns, "payment_id", outgoing.payment_id):
            # One invoice is tried at most once: a second one with its hash is refused by the index.
            insert(self._db, "outgoing", columns)

    def worst_fees(self, floor_msat: int, since: int) -> WorstFees:
        # Rounded up: the next one of the same kind must be covered whole.
        sql = (
            "SELECT coalesce(max(fees_msat) FILTER (WHERE amount_msat < ?), 0), coalesce(max("
            "(max(0, fees_msat - ?) * 1000000 + amount_msat - 1) / amount_msat) FILTER (WHERE amount_msat >= ?), 0) "
            "FROM outgoing WHERE state = 'settled' AND created_at >= ?"
        )
        values = (SMALL_MSAT, floor_msat, SMALL_MSAT, since)
        return WorstFees(*self._db.execute(sql, values).fetchone())

    def _first(self, where: str, *values: object) -> Outgoing | None:
        found = self._list(where, *values)
        return found[0] if found else None

    def _list(self, where: str, *values: object) -> list[Outgoing]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM outgoing {where}", values)
        return [_outgoing(dict(row)) for row in rows]


def _outgoing(row: dict[str, object]) -> Outgoing:
    typed = {
        "state": OutgoingState(row["state"]),
        "seen_unsettled": bool(row["seen_unsettled"]),
        "told": bool(row["told"]),
    }
    return Outgoing(**{**row, **typed})  # type: ignore[arg-type]
