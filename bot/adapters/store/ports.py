"""`handlers.tables.Ports`."""

import sqlite3
from collections.abc import Sequence

from handlers.records import PublishedPort


class SqlitePorts:
    """Table ``port``."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def taken(self) -> set[int]:
        return {row[0] for row in self._db.execute("SELECT host_port FROM port")}

    def take(self, pubkey: str, ports: Sequence[PublishedPort]) -> None:
        rows = [(port.host_port, pubkey, port.container_port) for port in ports]
        self._db.executemany(
            "INSERT INTO port (host_port, container, container_port) VALUES (?, ?, ?)", rows
        )

    def drop(self, pubkey: str) -> None:
        self._db.execute("DELETE FROM port WHERE container = ?", (pubkey,))
