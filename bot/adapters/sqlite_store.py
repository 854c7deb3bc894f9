"""The store on SQLite: one connection, one worker, WAL, every commit on disk before `write` returns.

A transaction is a plain function that is given a `SqliteTx`. It runs in a worker thread, alone; it
commits when the function returns and rolls back when it raises.
"""

import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from enum import Enum
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import trio

from handlers.domain.ledger import Entry
from handlers.domain.lifecycle import HOLDS_UNITS, State
from handlers.domain.meter import Meter
from handlers.domain.pricing import Tariff
from handlers.domain.quote import Quote
from handlers.domain.trial import Progress, Trial
from handlers.ports import Tx
from handlers.records import (
    Container,
    InvoiceRecord,
    InvoiceState,
    OutboxItem,
    Outgoing,
    OutgoingState,
    PublishedPort,
)
from nips.event import Event
from nips.keys import SecretKey

T = TypeVar("T")
CLOCK_STEP_S = 3_600


class SqliteStore:
    """`handlers.ports.Store`."""

    def __init__(self, path: Path) -> None:
        """Open and migrate. The file holds secrets: only its owner may read it."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "busy_timeout = 5000",
        ):
            self._db.execute(f"PRAGMA {pragma}")
        migrate(self._db)
        self._one_at_a_time = trio.CapacityLimiter(1)

    async def read(self, work: Callable[[Tx], T]) -> T:
        return await self._run("BEGIN", work)

    async def write(self, work: Callable[[Tx], T]) -> T:
        # IMMEDIATE takes the write lock before anything is read: what a check saw still holds at commit.
        return await self._run("BEGIN IMMEDIATE", work)

    async def _run(self, begin: str, work: Callable[[Tx], T]) -> T:
        return await trio.to_thread.run_sync(
            self._transaction, begin, work, limiter=self._one_at_a_time
        )

    def _transaction(self, begin: str, work: Callable[[Tx], T]) -> T:
        self._db.execute(begin)
        try:
            result = work(SqliteTx(self._db))
            self._db.execute("COMMIT")
        except BaseException:
            # A full disk ends the transaction by itself: rolling back again would hide the cause.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return result

    def close(self) -> None:
        self._db.close()


def migrate(db: sqlite3.Connection) -> None:
    """Apply every numbered file that this database has not seen, each in a transaction of its own.

    Foreign keys are checked at the end of each, not within: SQLite changes a constraint only by making the table
    anew, and the rows that point to it must stay meanwhile (sqlite.org/lang_altertable.html, section 7).
    """
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    folder = files("bot.adapters").joinpath("migrations")
    scripts = sorted(
        (f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name
    )
    if version > len(scripts):
        raise RuntimeError(
            f"the database is of version {version}, newer than this program ({len(scripts)})"
        )
    db.execute("PRAGMA foreign_keys = OFF")
    for number, script in enumerate(scripts, start=1):
        if number > version:
            _apply(db, script.read_text(), number)
    db.execute("PRAGMA foreign_keys = ON")


def _apply(db: sqlite3.Connection, script: str, number: int) -> None:
    try:
        db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number};")
        if db.execute("PRAGMA foreign_key_check").fetchone() is not None:
            raise RuntimeError(f"migration {number} leaves rows that point to nothing")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


class SqliteTx:
    """`handlers.ports.Tx`: explicit SQL, values always bound."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    # -- containers ---------------------------------------------------------------------------------

    def container(self, pubkey: str) -> Container | None:
        return self._first(self._containers("WHERE pubkey = ?", pubkey))

    def containers(self, states: Sequence[State] | None = None) -> list[Container]:
        if states is None:
            return self._containers("ORDER BY created_at")
        marks = ",".join("?" * len(states))
        return self._containers(
            f"WHERE state IN ({marks}) ORDER BY created_at", *(s.value for s in states)
        )

    def containers_of(self, admin: str) -> list[Container]:
        return self._containers("WHERE admin = ? ORDER BY created_at DESC", admin)

    def add_container(self, container: Container) -> None:
        columns = _container_columns(container)
        marks = ",".join("?" * len(columns))
        self._db.execute(
            f"INSERT INTO container ({','.join(columns)}) VALUES ({marks})", [*columns.values()]
        )
        self.take_ports(container.pubkey, container.ports)

    def save_container(self, container: Container) -> None:
        columns = _container_columns(container)
        sets = ",".join(f"{name} = ?" for name in columns)
        self._db.execute(
            f"UPDATE container SET {sets} WHERE pubkey = ?", [*columns.values(), container.pubkey]
        )

    def held_units(self) -> int:
        marks = ",".join("?" * len(HOLDS_UNITS))
        sql = f"SELECT coalesce(sum(units), 0) FROM container WHERE state IN ({marks})"
        return self._number(sql, *(s.value for s in HOLDS_UNITS))

    def waiting_of(self, admin: str) -> int:
        return self._number(
            "SELECT count(*) FROM container WHERE admin = ? AND state = 'waiting'", admin
        )

    def waiting_units(self) -> int:
        return self._number(
            "SELECT coalesce(sum(units), 0) FROM container WHERE state = 'waiting'"
        )

    def taken_ports(self) -> set[int]:
        return {row[0] for row in self._db.execute("SELECT host_port FROM port")}

    def take_ports(self, pubkey: str, ports: Sequence[PublishedPort]) -> None:
        rows = [(port.host_port, pubkey, port.container_port) for port in ports]
        self._db.executemany("INSERT INTO port VALUES (?, ?, ?)", rows)

    def drop_ports(self, pubkey: str) -> None:
        self._db.execute("DELETE FROM port WHERE container = ?", (pubkey,))

    def _containers(self, where: str, *values: object) -> list[Container]:
        rows = self._db.execute(f"SELECT * FROM container {where}", values).fetchall()
        return [_container(row, self._ports(row["pubkey"])) for row in rows]

    def _ports(self, pubkey: str) -> tuple[PublishedPort, ...]:
        sql = "SELECT host_port, container_port FROM port WHERE container = ? ORDER BY host_port"
        return tuple(PublishedPort(*row) for row in self._db.execute(sql, (pubkey,)))

    # -- quotes -------------------------------------------------------------------------------------

    def quote(self, quote_id: str) -> Quote | None:
        row = self._db.execute("SELECT body FROM quote WHERE quote_id = ?", (quote_id,)).fetchone()
        return _quote(json.loads(row["body"])) if row is not None else None

    def add_quote(self, quote: Quote, now: int) -> None:
        self._db.execute("DELETE FROM quote WHERE expires_at <= ?", (now,))
        body = json.dumps(asdict(quote))
        self._db.execute(
            "INSERT INTO quote VALUES (?, ?, ?)", (quote.quote_id, body, quote.expires_at)
        )

    # -- invoices -----------------------------------------------------------------------------------

    def invoice(self, payment_hash: str) -> InvoiceRecord | None:
        return self._first(self._invoices("WHERE payment_hash = ?", payment_hash))

    def add_invoice(self, invoice: InvoiceRecord) -> None:
        values = (*asdict(replace(invoice, state=InvoiceState.OPEN)).values(),)
        plain = [v.value if isinstance(v, InvoiceState) else v for v in values]
        self._db.execute(f"INSERT INTO invoice VALUES ({','.join('?' * len(plain))})", plain)

    def save_invoice(self, invoice: InvoiceRecord) -> None:
        self._db.execute(
            "UPDATE invoice SET state = ?, next_look_at = ?, answered_at = ? WHERE payment_hash = ?",
            (invoice.state.value, invoice.next_look_at, invoice.answered_at, invoice.payment_hash),
        )

    def invoices_to_look_at(self, now: int, limit: int) -> list[InvoiceRecord]:
        # One that is due in a distant future was put off by a clock that has been corrected since.
        where = "WHERE state = 'open' AND (next_look_at <= ? OR next_look_at > ?) ORDER BY next_look_at LIMIT ?"
        return self._invoices(where, now, now + CLOCK_STEP_S, limit)

    def invoices_of(self, container: str) -> list[InvoiceRecord]:
        return self._invoices("WHERE state = 'open' AND container = ?", container)

    def prune_invoices(self, before: int) -> None:
        self._db.execute(
            "DELETE FROM invoice WHERE state = 'closed' AND created_at < ?", (before,)
        )

    def open_invoices_of(self, container: str, now: int) -> list[InvoiceRecord]:
        return self._invoices(
            "WHERE state = 'open' AND container = ? AND expires_at > ?", container, now
        )

    def _invoices(self, where: str, *values: object) -> list[InvoiceRecord]:
        rows = self._db.execute(f"SELECT * FROM invoice {where}", values)
        return [
            InvoiceRecord(**{**dict(row), "state": InvoiceState(row["state"])}) for row in rows
        ]

    # -- outgoing payments --------------------------------------------------------------------------

    def outgoing(self, payment_id: str) -> Outgoing | None:
        return self._first(self._outgoings("WHERE payment_id = ?", payment_id))

    def outgoing_with_hash(self, payment_hash: str) -> list[Outgoing]:
        return self._outgoings("WHERE payment_hash = ?", payment_hash)

    def add_outgoing(self, outgoing: Outgoing) -> None:
        columns = {
            name: value.value if isinstance(value, Enum) else value
            for name, value in asdict(outgoing).items()
        }
        self._db.execute(
            f"INSERT INTO outgoing ({','.join(columns)}) VALUES ({','.join('?' * len(columns))})",
            [*columns.values()],
        )

    def save_outgoing(self, outgoing: Outgoing) -> None:
        sql = (
            "UPDATE outgoing SET state = ?, next_look_at = ?, fees_msat = ?, seen_unsettled = ?, told = ? "
            "WHERE payment_id = ?"
        )
        values = (
            outgoing.state.value,
            outgoing.next_look_at,
            outgoing.fees_msat,
            outgoing.seen_unsettled,
            outgoing.told,
        )
        self._db.execute(sql, (*values, outgoing.payment_id))

    def outgoing_to_look_at(self, now: int, limit: int) -> list[Outgoing]:
        where = "WHERE state = 'unknown' AND (next_look_at <= ? OR next_look_at > ?) ORDER BY next_look_at LIMIT ?"
        return self._outgoings(where, now, now + CLOCK_STEP_S, limit)

    def last_sweep_of(self, wallet: str) -> Outgoing | None:
        where = "WHERE wallet = ? AND to_wallet IS NOT NULL ORDER BY created_at DESC LIMIT 1"
        return self._first(self._outgoings(where, wallet))

    def unknown_outgoing(self) -> list[Outgoing]:
        return self._outgoings("WHERE state = 'unknown' ORDER BY created_at")

    def _outgoings(self, where: str, *values: object) -> list[Outgoing]:
        rows = self._db.execute(f"SELECT * FROM outgoing {where}", values)
        return [_outgoing(row) for row in rows]

    def worst_fee_ppm(self, floor_msat: int, since: int) -> int:
        # Rounded up: the next one of the same kind must be covered whole.
        sql = (
            "SELECT coalesce(max((max(0, fees_msat - ?) * 1000000 + amount_msat - 1) / amount_msat), 0) "
            "FROM outgoing WHERE state = 'settled' AND created_at >= ?"
        )
        return self._number(sql, floor_msat, since)

    def witness(self, other_than: str, *, unsettled: bool) -> Outgoing | None:
        seen = "seen_unsettled" if unsettled else "state = 'settled'"
        where = f"WHERE {seen} AND payment_id <> ? ORDER BY created_at DESC LIMIT 1"
        return self._first(self._outgoings(where, other_than))

    # -- ledger -------------------------------------------------------------------------------------

    def post(self, entry: Entry, at: int) -> bool:
        done = self._db.execute(
            "INSERT OR IGNORE INTO entry (key, at) VALUES (?, ?)", (entry.key, at)
        )
        if done.rowcount == 0:
            return False
        entry_id = done.lastrowid
        for account, amount_msat in entry.postings.items():
            # An INSERT … ON CONFLICT would be checked against the CHECK with the posting alone.
            self._db.execute("INSERT OR IGNORE INTO account VALUES (?, 0)", (account,))
            self._db.execute(
                "UPDATE account SET balance_msat = balance_msat + ? WHERE name = ?",
                (amount_msat, account),
            )
            self._db.execute(
                "INSERT INTO posting VALUES (?, ?, ?)", (entry_id, account, amount_msat)
            )
        return True

    def balance(self, account: str) -> int:
        return self._number(
            "SELECT coalesce(sum(balance_msat), 0) FROM account WHERE name = ?", account
        )

    # -- metering -----------------------------------------------------------------------------------

    def meter(self, pubkey: str) -> Meter | None:
        sql = "SELECT boot_id, start_tick, charged_until_ms, remainder FROM meter WHERE container = ?"
        row = self._db.execute(sql, (pubkey,)).fetchone()
        return Meter(*row) if row is not None else None

    def save_meter(self, pubkey: str, meter: Meter) -> None:
        values = (pubkey, meter.boot_id, meter.start_tick, meter.charged_until_ms, meter.remainder)
        self._db.execute("INSERT OR REPLACE INTO meter VALUES (?, ?, ?, ?, ?)", values)

    # -- outbox -------------------------------------------------------------------------------------

    def enqueue(self, event: Event, relay_urls: Sequence[str], at: int) -> None:
        self._db.execute(
            "INSERT INTO outbox (event, relays, created_at, next_at, attempts) VALUES (?, ?, ?, ?, 0)",
            (event.json.decode(), json.dumps(list(relay_urls)), at, at),
        )

    def outbox(self, now: int, limit: int) -> list[OutboxItem]:
        sql = "SELECT item_id, event, relays, created_at, attempts FROM outbox WHERE next_at <= ? OR next_at > ? ORDER BY item_id LIMIT ?"
        rows = self._db.execute(sql, (now, now + CLOCK_STEP_S, limit))
        return [
            OutboxItem(i, event, tuple(json.loads(relays)), at, n)
            for i, event, relays, at, n in rows
        ]

    def outbox_sent(self, item_id: int) -> None:
        self._db.execute("DELETE FROM outbox WHERE item_id = ?", (item_id,))

    def outbox_later(self, item_id: int, next_at: int, relay_urls: Sequence[str]) -> None:
        sql = (
            "UPDATE outbox SET next_at = ?, attempts = attempts + 1, relays = ? WHERE item_id = ?"
        )
        self._db.execute(sql, (next_at, json.dumps(list(relay_urls)), item_id))

    # -- small things -------------------------------------------------------------------------------

    def _number(self, sql: str, *values: object) -> int:
        with closing(self._db.execute(sql, values)) as cursor:
            return int(cursor.fetchone()[0])

    @staticmethod
    def _first(rows: list[T]) -> T | None:
        return rows[0] if rows else None


def _container_columns(c: Container) -> dict[str, Any]:
    return {
        "pubkey": c.pubkey,
        "secret": c.key.reveal_secret(),
        "admin": c.admin,
        "name": c.name,
        "asked_for": c.asked_for,
        "image": c.image,
        "units": c.units,
        "price_msat": c.tariff.price_msat,
        "interval_s": c.tariff.interval_s,
        "state": c.state.value,
        "state_since": c.state_since,
        "created_at": c.created_at,
        "reason": c.reason,
        "generation": c.generation,
        "progress": c.trial.progress.value,
        "proven": c.trial.proven,
        "crashes": c.trial.crashes,
        "retry_at": c.trial.retry_at,
        "owed_since": c.owed_since,
        "env": json.dumps(c.env),
        "volumes": json.dumps(c.volumes),
        "exposed": json.dumps(c.exposed),
        "upgrade": c.upgrade,
        "stop_asked_at": c.stop_asked_at,
        "restarted_at": c.restarted_at,
        "low_noticed": c.low_noticed,
        "wallet": c.wallet,
        "announced_id": c.announced_id,
        "announced_at": c.announced_at,
        "dirty": c.dirty,
        "app": c.app,
    }


def _container(row: sqlite3.Row, ports: tuple[PublishedPort, ...]) -> Container:
    same = (
        "admin",
        "name",
        "asked_for",
        "image",
        "units",
        "state_since",
        "created_at",
        "reason",
        "generation",
    )
    later = (
        "owed_since",
        "upgrade",
        "stop_asked_at",
        "restarted_at",
        "wallet",
        "announced_id",
        "announced_at",
        "app",
    )
    return Container(
        key=SecretKey(row["secret"]),
        tariff=Tariff(row["price_msat"], row["interval_s"]),
        state=State(row["state"]),
        trial=Trial(
            Progress(row["progress"]), bool(row["proven"]), row["crashes"], row["retry_at"]
        ),
        env=json.loads(row["env"]),
        volumes=tuple(json.loads(row["volumes"])),
        exposed=tuple(json.loads(row["exposed"])),
        ports=ports,
        low_noticed=bool(row["low_noticed"]),
        dirty=bool(row["dirty"]),
        **{name: row[name] for name in (*same, *later)},
    )


def _outgoing(row: sqlite3.Row) -> Outgoing:
    typed = {
        "state": OutgoingState(row["state"]),
        "seen_unsettled": bool(row["seen_unsettled"]),
        "told": bool(row["told"]),
    }
    return Outgoing(**{**dict(row), **typed})


def _quote(body: dict[str, Any]) -> Quote:
    tuples = {name: tuple(body[name]) for name in ("ports", "volumes", "signers")}
    return Quote(**{**body, **tuples, "tariff": Tariff(**body["tariff"])})
