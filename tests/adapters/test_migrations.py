"""Every earlier schema, with rows in it, becomes today's; and a constraint can change."""

import sqlite3
from contextlib import closing
from importlib.resources import files

import pytest

from bot.adapters.store.sqlite import SqliteStore, migrate

SCRIPTS = [
    f.read_text()
    for f in sorted(
        (
            f
            for f in files("bot.adapters.store").joinpath("migrations").iterdir()
            if f.name.endswith(".sql")
        ),
        key=lambda f: f.name,
    )
]
CONTAINER = {
    "pubkey": "a" * 64, "secret": b"\x01" * 32, "admin": "b" * 64, "name": "app", "asked_for": "x/app:1",
    "image": "x/app@sha256:" + "c" * 64, "units": 2, "price_msat": 5_000, "interval_s": 3_600, "state": "deployed",
    "state_since": 7, "created_at": 6, "reason": None, "generation": 3, "standing": "proven", "owed_since": 6,
    "env": '{"A": "1"}', "volumes": '["/data"]', "exposed": '["80/tcp"]', "upgrade": "", "stop_asked_at": None,
    "restarted_at": 0, "low_noticed": 0, "wallet": "wallet:main", "announced_id": None, "announced_at": 0, "dirty": 1,
}  # fmt: skip
PUBKEY = (
    "1b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f"  # of the secret 01 01 …
)


def make(path, version):
    """A database as the program of that version left it, with a row in every table."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for number, script in enumerate(SCRIPTS[:version], start=1):
            db.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")
        row = dict(CONTAINER)
        if version >= 4:
            row["progress"] = row.pop("standing")
        if version >= 5:
            row |= {"proven": 1, "crashes": 0, "retry_at": 0, "taken_out": 0, "revision": 1}
            for name in ("announced_id", "announced_at", "dirty"):
                del row[name]
        row["pubkey"] = PUBKEY
        insert(db, "container", row)
        insert(db, "port", {"host_port": 20_000, "container": PUBKEY, "container_port": "80/tcp"})
        insert(db, "invoice", {
            "payment_hash": "d" * 64, "container": PUBKEY, "bolt11": "ln1", "amount_msat": 9, "created_at": 1,
            "expires_at": 2, "wallet": "wallet:main", "state": "open", "next_look_at": 3, "answered_at": 0,
        } | ({"anonymous": 0} if version >= 5 else {}))  # fmt: skip
        insert(db, "meter", {
            "container": PUBKEY, "boot_id": "x", "start_tick": 1, "charged_until_ms": 2, "remainder": 0,
        })  # fmt: skip
        insert(db, "outgoing", {
            "payment_id": "p", "payment_hash": "e" * 64, "bolt11": "ln2", "source": f"container:{PUBKEY}",
            "wallet": "wallet:main", "amount_msat": 5, "fee_reserve_msat": 1, "created_at": 1, "valid_until": 2,
            "state": "unknown", "next_look_at": 0,
        })  # fmt: skip


def insert(db, table, row):
    marks = ",".join("?" * len(row))
    db.execute(f"INSERT INTO {table} ({','.join(row)}) VALUES ({marks})", [*row.values()])


@pytest.mark.parametrize("version", range(1, len(SCRIPTS) + 1))
async def test_from_every_earlier_schema(tmp_path, version):
    make(tmp_path / "enclaved.sqlite", version)
    with closing(SqliteStore(tmp_path / "enclaved.sqlite")) as store:
        row = await store.read(lambda tx: tx.containers.find(PUBKEY))
        invoice = await store.read(lambda tx: tx.invoices.find("d" * 64))
        payment = await store.read(lambda tx: tx.outgoing.find("p"))

    assert ("deployed", 3, 20_000) == (row.state.value, row.generation, row.ports[0].host_port)
    assert row.trial.proven or version >= 4
    assert row.revision == 1
    assert 9 == invoice.amount_msat
    assert (0, False, False) == (payment.fees_msat, payment.seen_unsettled, payment.told)


def test_a_newer_database_is_refused(tmp_path):
    with closing(sqlite3.connect(tmp_path / "x", isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version = {len(SCRIPTS) + 1}")
        with pytest.raises(RuntimeError, match="newer than this program"):
            migrate(db)
