"""`handlers.tables.Outbox`."""

import json
import sqlite3
from collections.abc import Sequence

from bot.adapters.store.rows import due_values, insert, is_due
from handlers.records import Intent, OutboxItem
from nips.event import Event


class SqliteOutbox:
    """Table ``outbox``."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def post(
        self, event: Event, at: int, relay_urls: Sequence[str] = (), subject: str = ""
    ) -> None:
        if subject:
            self._db.execute("DELETE FROM outbox WHERE subject = ?", (subject,))
        self._add(Intent.EVENT, event.json.decode(), relay_urls, at, subject)

    def tell(self, pubkey: str, text: str, at: int) -> None:
        self._add(Intent.MESSAGE, json.dumps({"to": pubkey, "text": text}), (), at)

    def promise_receipt(
        self, payment_hash: str, preimage: str | None, paid_at: int, at: int
    ) -> None:
        body = {"payment_hash": payment_hash, "preimage": preimage, "paid_at": paid_at}
        self._add(Intent.RECEIPT, json.dumps(body), (), at)

    def _add(
        self, intent: Intent, body: str, relay_urls: Sequence[str], at: int, subject: str = ""
    ) -> None:
        columns = {
            "intent": intent.value,
            "body": body,
            "relays": json.dumps(list(relay_urls)),
            "subject": subject,
            "created_at": at,
            "next_at": at,
            "attempts": 0,
        }
        insert(self._db, "outbox", columns)

    def list_due(self, now: int, limit: int) -> list[OutboxItem]:
        sql = (
            "SELECT item_id, intent, body, relays, created_at, attempts FROM outbox "
            f"WHERE {is_due('next_at')} ORDER BY item_id LIMIT ?"
        )
        return [
            OutboxItem(item_id, Intent(intent), body, tuple(json.loads(relays)), at, attempts)
            for item_id, intent, body, relays, at, attempts in self._db.execute(
                sql, (*due_values(now), limit)
            )
        ]

    def become(self, item_id: int, event: Event, relay_urls: Sequence[str]) -> None:
        sql = "UPDATE outbox SET intent = 'event', body = ?, relays = ? WHERE item_id = ?"
        self._db.execute(sql, (event.json.decode(), json.dumps(list(relay_urls)), item_id))

    def sent(self, item_id: int) -> None:
        self._db.execute("DELETE FROM outbox WHERE item_id = ?", (item_id,))

    def put_off(self, item_id: int, next_at: int, relay_urls: Sequence[str]) -> None:
        sql = (
            "UPDATE outbox SET next_at = ?, attempts = attempts + 1, relays = ? WHERE item_id = ?"
        )
        self._db.execute(sql, (next_at, json.dumps(list(relay_urls)), item_id))
