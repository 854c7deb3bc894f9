"""`handlers.tables.Meters`."""

import sqlite3

from handlers.domain.meter import Meter


class SqliteMeters:
    """Table ``meter``."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def find(self, pubkey: str) -> Meter | None:
        sql = "SELECT boot_id, start_tick, charged_until_ms, remainder FROM meter WHERE container = ?"
        row = self._db.execute(sql, (pubkey,)).fetchone()
        return Meter(**row) if row is not None else None

    def save(self, pubkey: str, meter: Meter) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO meter (container, boot_id, start_tick, charged_until_ms, remainder) "
            "VALUES (?, ?, ?, ?, ?)",
            (pubkey, meter.boot_id, meter.start_tick, meter.charged_until_ms, meter.remainder),
        )
