"""`handlers.tables.Containers`. A row is read without deriving its key: that costs a point multiplication."""

import json
import sqlite3
from collections.abc import Sequence

from bot.adapters.store.rows import insert, update
from handlers.domain.lifecycle import State
from handlers.domain.pricing import Tariff
from handlers.domain.trial import Progress, Trial
from handlers.records import Container, PublishedPort
from handlers.tables import Count

# Columns that are a field of the row, as they are.
_SAME = (
    "pubkey", "secret", "admin", "name", "asked_for", "image", "units", "state_since", "created_at", "reason", "generation",
    "owed_since", "upgrade", "stop_asked_at", "restarted_at", "wallet", "app", "revision",
)  # fmt: skip
_BOOLS = ("low_noticed", "taken_out")
_LISTS = ("volumes", "exposed")
_OTHERS = ("price_msat", "interval_s", "state", "progress", "proven", "crashes", "retry_at", "env")
COLUMNS = ", ".join(f"container.{name}" for name in (*_SAME, *_BOOLS, *_LISTS, *_OTHERS))


class SqliteContainers:
    """Table ``container``."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def find(self, pubkey: str) -> Container | None:
        found = self._list("WHERE pubkey = ?", pubkey)
        return found[0] if found else None

    def list_in(self, states: Sequence[State]) -> list[Container]:
        where = f"WHERE state IN ({_marks(states)}) ORDER BY created_at"
        return self._list(where, *(state.value for state in states))

    def list_of(self, admin: str, limit: int) -> list[Container]:
        return self._list("WHERE admin = ? ORDER BY created_at DESC LIMIT ?", admin, limit)

    def add(self, container: Container) -> None:
        insert(self._db, "container", _columns(container))

    def save(self, container: Container) -> None:
        update(self._db, "container", _columns(container), "pubkey", container.pubkey)

    def shift_times(self, by_s: int, *, after: int, until: int) -> None:
        for column in ("state_since", "owed_since"):
            sql = f"UPDATE container SET {column} = {column} + ? WHERE {column} > ? AND {column} <= ?"
            self._db.execute(sql, (by_s, after, until))

    def count(self, states: Sequence[State]) -> Count:
        return self._count(f"state IN ({_marks(states)})", *(state.value for state in states))

    def count_unpaid_of(self, admin: str, since: int) -> Count:
        # An account exists from the first payment on.
        never_paid = (
            "NOT EXISTS (SELECT 1 FROM account WHERE name = 'container:' || container.pubkey)"
        )
        where = f"admin = ? AND (state = 'waiting' OR (created_at >= ? AND {never_paid}))"
        return self._count(where, admin, since)

    def _count(self, where: str, *values: object) -> Count:
        sql = f"SELECT count(*), coalesce(sum(units), 0) FROM container WHERE {where}"
        return Count(*self._db.execute(sql, values).fetchone())

    def _list(self, where: str, *values: object) -> list[Container]:
        rows = self._db.execute(f"SELECT {COLUMNS} FROM container {where}", values).fetchall()
        return [container_of(row, ports_of(self._db, row["pubkey"])) for row in rows]


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def ports_of(db: sqlite3.Connection, pubkey: str) -> tuple[PublishedPort, ...]:
    """The ports that a container has."""
    sql = "SELECT host_port, container_port FROM port WHERE container = ? ORDER BY host_port"
    return tuple(PublishedPort(*row) for row in db.execute(sql, (pubkey,)))


def container_of(row: sqlite3.Row, ports: tuple[PublishedPort, ...]) -> Container:
    """From a row that has `COLUMNS`."""
    return Container(
        tariff=Tariff(row["price_msat"], row["interval_s"]),
        state=State(row["state"]),
        trial=Trial(
            Progress(row["progress"]), bool(row["proven"]), row["crashes"], row["retry_at"]
        ),
        env=json.loads(row["env"]),
        ports=ports,
        low_noticed=bool(row["low_noticed"]),
        taken_out=bool(row["taken_out"]),
        volumes=tuple(json.loads(row["volumes"])),
        exposed=tuple(json.loads(row["exposed"])),
        **{name: row[name] for name in _SAME},
    )


def _columns(c: Container) -> dict[str, object]:
    return {
        **{name: getattr(c, name) for name in (*_SAME, *_BOOLS)},
        **{name: json.dumps(getattr(c, name)) for name in _LISTS},
        "price_msat": c.tariff.price_msat,
        "interval_s": c.tariff.interval_s,
        "state": c.state.value,
        "progress": c.trial.progress.value,
        "proven": c.trial.proven,
        "crashes": c.trial.crashes,
        "retry_at": c.trial.retry_at,
        "env": json.dumps(c.env),
    }
