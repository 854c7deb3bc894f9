"""`handlers.tables.Announcements`."""

import sqlite3

from bot.adapters.store.containers import COLUMNS, container_of, ports_of
from bot.adapters.store.rows import LONGEST_WAIT_S
from handlers.records import Announcement, Container

_TOLD = "a.container, a.event_id, a.revision AS told, a.announced_at, a.profile_at"
# An unpaid place is told of once: repeating it would be a stranger's free advertisement.
_TOLD_AGAIN = "('deployed', 'paused', 'shelved')"


class SqliteAnnouncements:
    """Table ``announcement``."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def list_due(
        self, now: int, every_s: int, limit: int
    ) -> list[tuple[Container, Announcement | None]]:
        sql = (
            f"SELECT {COLUMNS}, {_TOLD} FROM container LEFT JOIN announcement a ON a.container = pubkey "
            "WHERE a.revision IS NULL OR a.revision <> container.revision "
            f"OR (state IN {_TOLD_AGAIN} AND (a.announced_at <= ? OR a.announced_at > ?)) LIMIT ?"
        )
        rows = self._db.execute(sql, (now - every_s, now + LONGEST_WAIT_S, limit)).fetchall()
        return [(container_of(row, ports_of(self._db, row["pubkey"])), _told(row)) for row in rows]

    def save(self, announcement: Announcement) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO announcement (container, event_id, revision, announced_at, profile_at) "
            "VALUES (?, ?, ?, ?, ?)",
            (
                announcement.container,
                announcement.event_id,
                announcement.revision,
                announcement.announced_at,
                announcement.profile_at,
            ),
        )


def _told(row: sqlite3.Row) -> Announcement | None:
    if row["container"] is None:
        return None
    return Announcement(
        row["container"], row["event_id"], row["told"], row["announced_at"], row["profile_at"]
    )
