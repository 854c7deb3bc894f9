"""`handlers.tables.Quotes`."""

import json
import sqlite3
from dataclasses import asdict
from typing import Any

from handlers.domain.pricing import Tariff
from handlers.domain.quote import Quote


class SqliteQuotes:
    """Table ``quote``: the value as JSON, since nothing asks for a part of it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def find(self, quote_id: str) -> Quote | None:
        row = self._db.execute("SELECT body FROM quote WHERE quote_id = ?", (quote_id,)).fetchone()
        return _quote(json.loads(row["body"])) if row is not None else None

    def add(self, quote: Quote, now: int) -> None:
        self._db.execute("DELETE FROM quote WHERE expires_at <= ?", (now,))
        self._db.execute(
            "INSERT INTO quote (quote_id, body, expires_at) VALUES (?, ?, ?)",
            (quote.quote_id, json.dumps(asdict(quote)), quote.expires_at),
        )


def _quote(body: dict[str, Any]) -> Quote:
    tuples = {name: tuple(value) for name, value in body.items() if isinstance(value, list)}
    return Quote(**{**body, **tuples, "tariff": Tariff(**body["tariff"])})
