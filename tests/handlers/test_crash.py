"""Kill the server at every await and around every commit, start it again, and count every msat.

A crash point lies before and after every call to the wallet and the engine, before and after every
read, and around every commit (before it begins, after its work but before COMMIT, after COMMIT).
The scenario is the whole main job; the client repeats what was not answered, as clients do.
"""

import shutil
import sqlite3
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from bot.adapters.store.sqlite import SqliteStore
from bot.checkpoint.scan import scan_database
from handlers import BY_NAME
from handlers.context import Caller, Policy
from handlers.domain.ledger import MAIN_WALLET, container_account
from handlers.domain.lifecycle import State
from handlers.domain.meter import Rhythm
from handlers.domain.pricing import Tariff
from handlers.duties.incoming import look_up_wallet_of
from handlers.errors import Refusal
from handlers.loops import duties
from handlers.params import parse_params
from handlers.transitions import held_units
from nips.keys import SecretKey
from tests.conftest import audit_books
from tests.fakes import FakeClock, FakeEngine, FakeWallet, make_context

ADMIN = SecretKey.generate().pubkey
TARIFF = Tariff(price_msat=1_000, interval_s=1)
POLICY = Policy(
    tariff=TARIFF,
    rhythm=Rhythm(charge_every_ms=5_000, low_balance_ms=5_000, stays_up_ms=1_000),
    resume_ms=2_000,
    sweep_msat=2_000,
    fee_reserve_min_msat=2_000,
    htlc_s=60,
)


class Crash(BaseException):
    """kill -9. Not an Exception: nothing in the server may catch it."""


@dataclass
class Points:
    """Counts the points, and crashes at the ones asked for."""

    crash_at: frozenset[int] = frozenset()
    passed: int = 0

    def hit(self) -> None:
        self.passed += 1
        if self.passed in self.crash_at:
            raise Crash


class Crashing:
    """Any port, with a crash point before and after every awaited call."""

    def __init__(self, port, points: Points) -> None:
        self._port, self._points = port, points

    def __getattr__(self, name):
        found = getattr(self._port, name)
        if name not in self.ASYNC:
            return found

        async def call(*args, **kwargs):
            self._points.hit()
            result = await found(*args, **kwargs)
            self._points.hit()
            return result

        return call


class CrashingWallet(Crashing):
    ASYNC = frozenset(
        {
            "make_invoice",
            "make_own_invoice",
            "look_up",
            "received",
            "pay",
            "look_up_payment",
            "balance",
        }
    )


class CrashingEngine(Crashing):
    ASYNC = frozenset({"found", "start", "halt", "remove", "logs", "exit_reason"})


class CrashingStore(SqliteStore):
    points = Points()

    async def read(self, work, *args):
        self.points.hit()
        return await super().read(work, *args)

    async def write(self, work, *args):
        def work_then_crash(tx):
            result = work(tx, *args)
            self.points.hit()  # everything is written, nothing committed
            return result

        self.points.hit()
        result = await super().write(work_then_crash)
        self.points.hit()
        return result


@dataclass
class Copies:
    """`handlers.ports.Durability` by real checkpoints' way of copying; dies before and after the copy is the newest."""

    machine: "Machine"

    async def reached(self) -> bool:
        m = self.machine
        m.points.hit()
        (_, raw), *_ = scan_database(m.folder / "enclaved.sqlite", "").parts
        (m.folder / "copy.new").write_bytes(raw)
        m.points.hit()
        (m.folder / "copy.new").rename(m.folder / "copy")
        m.points.hit()
        return True

    def soon(self) -> None:
        """Nobody waits, so it may as well never come."""


@dataclass
class Machine:
    """What outlives the server: disk, Docker, the Lightning node, time; and the client's memory."""

    folder: Path
    points: Points
    per_container: bool
    # A crash takes the disk along: what is left is the last copy that was anchored.
    loses_disk: bool = False
    clock: FakeClock = field(default_factory=FakeClock)
    crashes: int = 0
    total: int = 0

    def __post_init__(self) -> None:
        self.wallet, self.engine = (
            FakeWallet(self.clock, self.per_container),
            FakeEngine(self.clock),
        )
        self.key = SecretKey.generate()
        self.boot()

    def boot(self) -> None:
        self.store = CrashingStore(self.folder / "enclaved.sqlite")
        self.store.points = self.points
        self.engine.forget()
        self.loops = duties(POLICY)
        wallet, engine = (
            CrashingWallet(self.wallet, self.points),
            CrashingEngine(self.engine, self.points),
        )
        self.ctx = make_context(
            self.store, wallet, engine, self.clock, policy=POLICY, key=self.key
        )
        if self.loses_disk:
            self.ctx = replace(self.ctx, durability=Copies(self))

    def lose_disk(self) -> None:
        """Restore: the newest copy of the database, or none."""
        for path in self.folder.glob("enclaved.sqlite*"):
            path.unlink()
        if (self.folder / "copy").exists():
            shutil.copy(self.folder / "copy", self.folder / "enclaved.sqlite")

    async def until_done(self, work):
        """Repeat until it is not interrupted by a crash."""
        while True:
            try:
                return await work()
            except Crash:
                self.crashes += 1
                self.store.close()
                if self.loses_disk:
                    self.lose_disk()
                self.boot()

    async def call(self, method, **params):
        async def once():
            route = BY_NAME[method]
            typed = parse_params(route.params, params)
            assert not isinstance(typed, Refusal), typed
            return await route.handler(self.ctx, Caller(ADMIN, False), typed)

        return await self.until_done(once)

    async def turn(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for loop in duties(POLICY):
            await self.until_done(partial(self._once, loop.name))
        # The checkpoint of every minute.
        await self.until_done(lambda: self.ctx.durability.reached())

    async def _once(self, name: str) -> None:
        """Of the loops that the server has now: a crash makes them anew."""
        await next(loop for loop in self.loops if loop.name == name).once(self.ctx)

    async def withdraw_all(self, pubkey: str) -> int:
        sat = (await self.call("balance", pubkey=pubkey))["withdrawable_sat"]
        if sat == 0:
            return 0
        stranger = self.wallet.mint("stranger", sat * 1_000, None, 600)
        self.wallet.invoices.pop(stranger.payment_hash)
        await self.call("withdraw", pubkey=pubkey, invoice=stranger.bolt11)
        return sat * 1_000


async def main_job(m: Machine) -> str:
    """Deploy, pay, run, top up, withdraw some, run dry, resume, stop, withdraw all."""
    result = await m.call("deploy", docker="example.com/app:1", units=1, amount_sat=12)
    pubkey = result["pubkey"]
    m.wallet.settle(result["invoice"]["payment_hash"])
    for seconds in (1, 2, 2, 3):
        await m.turn(seconds)
    topup = await m.call("topup", pubkey=pubkey, amount_sat=10)
    m.wallet.settle(topup["invoice"]["payment_hash"])
    await m.turn(2)
    m.wallet.fee_msat = 300
    m.wallet.answer_pay = False
    stranger = m.wallet.mint("stranger", 3_000, None, 600)
    m.wallet.invoices.pop(stranger.payment_hash)
    await m.call("withdraw", pubkey=pubkey, invoice=stranger.bolt11)
    m.wallet.answer_pay, m.wallet.fee_msat = True, 0
    for seconds in (2, 4, 4, 4):
        await m.turn(seconds)
    again = await m.call("topup", pubkey=pubkey, amount_sat=20)
    m.wallet.settle(again["invoice"]["payment_hash"])
    if m.per_container:
        m.wallet.deposit(f"wallet:{pubkey}", 7_000)
        await m.until_done(lambda: look_up_wallet_of(m.ctx, pubkey))
    for seconds in (2, 3):
        await m.turn(seconds)
    await m.call("stop", pubkey=pubkey, force=True)
    await m.turn(1)
    await m.withdraw_all(pubkey)
    # Whatever was left open comes to its end: expired requests, unpaid deploys.
    for seconds in (150, 700, 900, 1):
        await m.turn(seconds)
    return pubkey


async def check(m: Machine, pubkey: str) -> None:
    db, read = sqlite3.connect(m.folder / "enclaved.sqlite"), m.store.read
    audit_books(db)
    for name, held in m.wallet.balances.items():
        assert held == -(await read(lambda tx, n=name: tx.ledger.balance(n))), (
            f"{name} and its mirror"
        )

    def number(sql, *values):
        return db.execute(sql, values).fetchone()[0]

    credited = number("SELECT count(*) FROM entry WHERE key LIKE 'payment:%'")
    ours = [
        i for i in m.wallet.invoices.values() if i["settled"] and i["wallet"] in m.wallet.balances
    ]
    swept = number(
        "SELECT count(*) FROM outgoing WHERE to_wallet IS NOT NULL AND state = 'settled'"
    )
    assert credited == len(ours) - swept, "every payment is credited once"
    charged = number(
        "SELECT coalesce(-sum(amount_msat), 0) FROM posting JOIN entry USING (entry_id) "
        "WHERE key LIKE 'charge:%' AND account = ?", container_account(pubkey)
    )  # fmt: skip
    ran_ms = m.engine.total_ran_ms(pubkey)
    assert charged <= ran_ms, f"charged {charged} for {ran_ms} ms"
    assert charged >= ran_ms - 8_000, f"charged only {charged} for {ran_ms} ms"
    assert await read(lambda tx: tx.outgoing.list_unknown()) == []
    rows = await read(lambda tx: tx.containers.list_in(tuple(State)))
    for row in rows:
        up = m.engine.containers.get(row.pubkey, {}).get("up", False)
        assert up == (row.state is State.DEPLOYED), f"{row.state} but up={up}"
    assert m.engine.containers.keys() <= {row.pubkey for row in rows}
    assert await read(held_units) == 0
    db.close()


async def play(
    crash_at: frozenset[int], *, per_container: bool, loses_disk: bool = False
) -> Machine:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        m = Machine(folder, Points(crash_at), per_container, loses_disk)
        pubkey = await main_job(m)
        m.total = m.points.passed
        m.points.crash_at = frozenset()
        await check(m, pubkey)
        m.store.close()
        return m
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("per_container", [False, True])
async def test_a_crash_at_any_point_loses_creates_and_double_charges_nothing(
    per_container, part, record_property
):
    total = (await play(frozenset(), per_container=per_container)).total
    assert total > 200
    tried = 0
    for point in range(1 + part, total + 1, 2):
        machine = await play(frozenset({point}), per_container=per_container)
        tried += machine.crashes
    assert tried == len(range(1 + part, total + 1, 2))
    kind = "per-container wallets" if per_container else "one wallet"
    record_property(
        "figure", f"crash points tried, {kind}, part {part + 1} of 2: {tried} of {total}"
    )


@pytest.mark.parametrize("per_container", [False, True])
async def test_a_crash_at_any_point_that_takes_the_disk_along_pays_and_credits_nothing_twice(
    per_container, record_property
):
    """After a restore every payment newer than the copy is found again, and none goes out again."""
    total = (await play(frozenset(), per_container=per_container, loses_disk=True)).total
    tried = 0
    for point in range(1, total + 1):
        machine = await play(frozenset({point}), per_container=per_container, loses_disk=True)
        tried += machine.crashes
    assert tried == total > 200
    kind = "per-container wallets" if per_container else "one wallet"
    record_property(
        "figure", f"crash points with a restore from the last copy, {kind}: {tried} of {total}"
    )


@pytest.mark.parametrize("per_container", [False, True])
async def test_a_second_crash_while_recovering_changes_nothing(per_container, record_property):
    total = (await play(frozenset(), per_container=per_container)).total
    tried = 0
    for point in range(5, total, 11):
        machine = await play(frozenset({point, point + 1, point + 4}), per_container=per_container)
        tried += machine.crashes
    record_property("figure", f"crashes while recovering from a crash, tried: {tried}")
    assert tried >= total // 11


async def test_the_harness_notices_a_server_that_pays_twice():
    """A test of the test: a simulator that lets a payment be repeated must be caught."""
    folder = Path(tempfile.mkdtemp())
    m = Machine(folder, Points(), per_container=False)
    m.wallet.balances[MAIN_WALLET] = 10_000
    stranger = m.wallet.mint("stranger", 1_000, None, 600)
    m.wallet.invoices.pop(stranger.payment_hash)
    await m.wallet.pay(stranger.bolt11, 1_000, None)
    with pytest.raises(AssertionError, match="paid twice"):
        await m.wallet.pay(stranger.bolt11, 1_000, None)
    m.store.close()
    shutil.rmtree(folder)
