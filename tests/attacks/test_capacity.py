"""Who does not pay keeps nothing: no units, no rows, nobody's attention; and stops nobody's payments."""

import sqlite3
import time
from contextlib import closing

import pytest

from handlers.domain.ledger import container_account
from handlers.domain.lifecycle import State
from handlers.errors import Code, Refusal
from handlers.ports import CannotStart
from handlers.transitions import held_units
from handlers.zap import pay_callback
from nips.keys import SecretKey

IMAGE = "example.com/app:1"


async def withdraw(world, pubkey, sat):
    invoice = world.wallet.mint("stranger", sat * 1_000, None, 600)
    world.wallet.invoices.pop(invoice.payment_hash)
    return await world.call("withdraw", pubkey=pubkey, invoice=invoice.bolt11)


async def test_an_unpaid_place_is_not_kept_by_asking_for_more_invoices(world):
    result = await world.call("deploy", docker=IMAGE, units=50)
    for _ in range(8):
        await world.call(
            "topup", SecretKey.generate().pubkey, pubkey=result["pubkey"], amount_sat=1
        )
        await world.run(150, step_s=50)

    assert State.EXPIRED is (await world.row(result["pubkey"])).state
    assert 0 == await world.store.read(held_units)


async def test_who_takes_his_money_out_gives_his_place_back(world):
    """Pay, withdraw, pause: 95 units were held for an hour for 6 sat."""
    pubkey = await world.deployed(units=50)
    most = (await world.call("balance", pubkey=pubkey))["withdrawable_sat"]
    assert "settled" == (await withdraw(world, pubkey, most))["state"]
    await world.run(300, step_s=5)

    assert State.SHELVED is (await world.row(pubkey)).state
    assert 0 == await world.store.read(held_units)
    other = await world.call("deploy", SecretKey.generate().pubkey, docker=IMAGE, units=50)
    assert not isinstance(other, Refusal)


async def test_who_takes_out_a_little_keeps_his_place_as_long_as_anybody(world):
    pubkey = await world.deployed(units=1, amount_sat=100)
    await withdraw(world, pubkey, 20)
    while State.DEPLOYED is (await world.row(pubkey)).state:
        await world.run(60, step_s=60)

    assert State.PAUSED is (await world.row(pubkey)).state


async def test_who_pays_again_after_a_withdrawal_keeps_the_place_as_anybody(world):
    pubkey = await world.deployed(units=1, amount_sat=100)
    await withdraw(world, pubkey, 80)
    topup = await world.call("topup", pubkey=pubkey, amount_sat=1)
    world.wallet.settle(topup["invoice"]["payment_hash"])
    while State.DEPLOYED is (await world.row(pubkey)).state:
        await world.run(60, step_s=60)

    assert State.PAUSED is (await world.row(pubkey)).state


async def test_twenty_zap_invoices_stop_no_zap(world):
    pubkey = await world.deployed()
    for _ in range(50):
        assert "pr" in await pay_callback(world.ctx, pubkey, 1_000, None)
    last = await pay_callback(world.ctx, pubkey, 21_000, None)
    before = await world.balance(container_account(pubkey))
    paid_hash = next(h for h, i in world.wallet.invoices.items() if i["bolt11"] == last["pr"])
    world.wallet.settle(paid_hash)
    await world.turn()

    assert before + 21_000 == await world.balance(container_account(pubkey))
    opened = await world.store.read(lambda tx: tx.invoices.list_open_of(pubkey))
    assert len(opened) <= world.ctx.policy.max_open_invoices


async def test_letting_go_and_deploying_again_is_counted(world):
    """1,217 deploys in two minutes: stopped at once, they took up no place, and left rows and invoices."""
    caller, taken = SecretKey.generate().pubkey, 0
    for _ in range(20):
        result = await world.call("deploy", caller, docker=IMAGE, units=1)
        if isinstance(result, Refusal):
            assert Code.RATE_LIMITED is result.code
            continue
        taken += 1
        await world.call("stop", caller, pubkey=result["pubkey"], force=True)

    assert world.ctx.policy.capacity.max_waiting_per_caller == taken
    await world.run(700, step_s=100)
    assert not isinstance(await world.call("deploy", caller, docker=IMAGE, units=1), Refusal)


async def test_units_of_one_caller_are_bounded_while_unpaid(world):
    caller = SecretKey.generate().pubkey
    await world.call("deploy", caller, docker=IMAGE, units=40)
    refused = await world.call("deploy", caller, docker=IMAGE, units=11)

    assert Code.RATE_LIMITED is refused.code


async def test_unpaid_deploys_leave_nothing_and_nobody_is_asked_about_them(world):
    for _ in range(40):
        await world.call("deploy", SecretKey.generate().pubkey, docker=IMAGE, units=1)
    await world.run(3 * 3_600, step_s=300)
    asked = world.wallet.looks
    await world.run(3 * 3_600, step_s=300)

    assert asked == world.wallet.looks
    assert [] == await world.store.read(lambda tx: tx.containers.list_in(tuple(State)))
    assert set() == await world.store.read(lambda tx: tx.ports.taken())


async def test_a_clock_half_an_hour_ahead_when_an_invoice_was_made_delays_no_credit(world):
    """It was seen thirty minutes late."""
    world.clock.unix += 1_800
    result = await world.call("deploy", docker=IMAGE, units=1)
    await world.turn()
    world.clock.unix -= 1_800
    world.wallet.settle(result["invoice"]["payment_hash"])
    await world.run(60, step_s=10)

    assert State.DEPLOYED is (await world.row(result["pubkey"])).state


async def test_what_is_stopped_keeps_no_secrets(world):
    pubkey = await world.deployed(env={"TOKEN": "hunter2"})
    await world.call("stop", pubkey=pubkey, force=True)

    assert {} == (await world.row(pubkey)).env
    assert b"hunter2" not in world.path.read_bytes()


@pytest.mark.parametrize("held_msat", [0, 99_000])
async def test_a_wallet_that_holds_less_than_is_owed_takes_no_money(world, held_msat):
    await world.deployed(amount_sat=100)
    world.wallet.balances["wallet:main"] = held_msat
    for loop in range(2):
        await world.turn()
        refused = await world.call("deploy", SecretKey.generate().pubkey, docker=IMAGE, units=1)
        assert isinstance(refused, Refusal) == (loop == 1), "once may be a payment in between"

    assert "unavailable: no new containers now: the wallet holds less than is owed" == str(refused)
    pubkey = (await world.store.read(lambda tx: tx.containers.list_in([State.DEPLOYED])))[0].pubkey
    no_topup = await world.call("topup", pubkey=pubkey, amount_sat=1)
    assert "unavailable: no money is taken now: the wallet holds less than is owed" == str(
        no_topup
    )
    world.wallet.balances["wallet:main"] = 100_000
    await world.turn()
    assert not isinstance(await world.call("topup", pubkey=pubkey, amount_sat=1), Refusal)


async def test_a_wallet_that_does_not_tell_what_it_holds_raises_no_alarm(world):
    await world.deployed(amount_sat=100)
    world.wallet.tells_balance = False
    for _ in range(3):
        await world.turn()

    assert world.ctx.alarms.no_invoices_because is None


def fill(path, rows):
    """Containers that ended long ago, as their announcements were taken back."""
    with closing(sqlite3.connect(path)) as db, db:
        db.row_factory = sqlite3.Row
        (row,) = db.execute("SELECT * FROM container LIMIT 1").fetchall()
        columns = {**dict(row), "state": "stopped", "state_since": 0, "created_at": 0}
        marks = ",".join("?" * len(columns))
        names = ",".join(columns)
        for number in range(rows):
            pubkey = f"{number:064x}"
            db.execute(
                f"INSERT INTO container ({names}) VALUES ({marks})",
                [*(columns | {"pubkey": pubkey}).values()],
            )
            db.execute(
                "INSERT INTO announcement (container, event_id, revision, announced_at, profile_at) "
                "VALUES (?, NULL, ?, 0, 0)",
                (pubkey, columns["revision"]),
            )


async def test_twenty_thousand_ended_rows_leave_and_are_not_felt(world):
    """An announcement turn took two seconds."""
    await world.deployed()
    fill(world.path, 20_000)
    archive = next(loop for loop in world.loops if loop.name == "archive")
    turns = 0
    while (await world.store.read(lambda tx: tx.containers.count([State.STOPPED]))).containers:
        await archive.once(world.ctx)
        turns += 1
    started = time.monotonic()
    for _ in range(10):
        await world.turn()

    assert 100 == turns
    # Loosely: the ten turns of an empty server take about 0.1 s here.
    assert time.monotonic() - started < 5


async def test_one_sat_does_not_make_a_withdrawal_forgotten(world):
    """Pay, withdraw, pay a sat, pause: 50 units were held for an hour for 12 sat."""
    pubkey = await world.deployed(units=50)
    most = (await world.call("balance", pubkey=pubkey))["withdrawable_sat"]
    await withdraw(world, pubkey, most)
    topup = await world.call("topup", pubkey=pubkey, amount_sat=1)
    world.wallet.settle(topup["invoice"]["payment_hash"])
    await world.run(300, step_s=5)

    assert State.SHELVED is (await world.row(pubkey)).state
    assert 0 == await world.store.read(held_units)


async def test_who_takes_his_money_out_while_paused_gives_his_place_back(world):
    pubkey = await world.deployed(units=50)
    await world.run(3_700, step_s=60)
    assert State.PAUSED is (await world.row(pubkey)).state
    topup = await world.call("topup", pubkey=pubkey, amount_sat=200)
    world.wallet.settle(topup["invoice"]["payment_hash"])
    await world.turn()
    assert State.PAUSED is (await world.row(pubkey)).state
    await withdraw(world, pubkey, 100)

    assert State.SHELVED is (await world.row(pubkey)).state
    assert 0 == await world.store.read(held_units)


async def test_unpaid_places_cannot_ask_for_invoices_without_end(world):
    """50 unpaid units with eighty invoices each: 4,000 to be asked about, 50 a second; others' came late."""
    caller = SecretKey.generate().pubkey
    pubkey = (await world.call("deploy", caller, docker=IMAGE, units=1))["pubkey"]
    for who in (caller, SecretKey.generate().pubkey):
        for _ in range(40):
            await world.call("topup", who, pubkey=pubkey, amount_sat=1)
    for _ in range(30):
        assert "pr" in await pay_callback(world.ctx, pubkey, 1_000, None)

    opened = await world.store.read(lambda tx: tx.invoices.list_open_of(pubkey))
    assert 4 <= len(opened) <= 12


async def test_an_unpaid_place_can_still_be_topped_up(world):
    result = await world.call("deploy", docker=IMAGE, units=2)
    for _ in range(2):
        more = await world.call("topup", pubkey=result["pubkey"], amount_sat=4)
        world.wallet.settle(more["invoice"]["payment_hash"])
    await world.run(20)
    more = await world.call("topup", pubkey=result["pubkey"], amount_sat=4)
    world.wallet.settle(more["invoice"]["payment_hash"])
    await world.turn()

    assert State.DEPLOYED is (await world.row(result["pubkey"])).state


async def test_what_cannot_run_keeps_no_ports(world):
    """Eight ports each for two weeks, of images that never ran and whose money was taken out again."""
    world.engine.problem = CannotStart("no such program", permanent=True)
    pubkey = await world.deployed(amount_sat=1_000)
    assert State.FAILED is (await world.row(pubkey)).state
    assert set() == await world.store.read(lambda tx: tx.ports.taken())
    world.engine.problem = None
    await world.run(60)
    await world.call("restart", pubkey=pubkey)
    await world.turn()

    row = await world.row(pubkey)
    assert (State.DEPLOYED, 1, 2) == (row.state, len(row.ports), row.generation)
    assert row.ports == world.engine.containers[pubkey]["spec"].ports


async def test_ended_rows_with_a_balance_and_payments_that_are_unknown_are_not_felt(world):
    """Each of the one was compared with each of the other: eleven seconds of every minute nobody was answered."""
    await world.deployed()
    fill(world.path, 6_000)
    with closing(sqlite3.connect(world.path)) as db, db:
        for number in range(6_000):
            name = f"{number:064x}"
            db.execute("INSERT INTO account VALUES (?, 5000)", (f"container:{name}",))
            db.execute(
                "INSERT INTO outgoing (payment_id, payment_hash, bolt11, source, wallet, amount_msat, fee_reserve_msat, "
                "created_at, valid_until, state, next_look_at) VALUES (?, ?, '', 'container:x', 'wallet:main', 1, 0, 0, 0, "
                "'unknown', 0)",
                (name, name),
            )
    archive = next(loop for loop in world.loops if loop.name == "archive")
    started = time.monotonic()
    await archive.once(world.ctx)

    # Loosely: 0.04 s here.
    assert time.monotonic() - started < 2
