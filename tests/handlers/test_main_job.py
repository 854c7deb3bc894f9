"""The life of a container on simulators: deploy, pay, run, draw down, pause, resume, stop, withdraw."""

import pytest

from handlers.domain.ledger import MAIN_WALLET, container_account
from handlers.domain.lifecycle import State
from handlers.domain.trial import Progress
from handlers.duties.incoming import look_up
from handlers.errors import Code, Refusal
from handlers.ports import CannotStart, IncomingState, PayStatus
from handlers.transitions import held_units
from nips.keys import SecretKey
from tests.fakes import with_policy


async def test_deploy_waits_for_payment_and_runs_nothing(world):
    result = await world.call("deploy", docker="example.com/app:1", units=2)

    row = await world.row(result["pubkey"])

    assert (row.state, row.units) == (State.WAITING, 2)
    assert result["invoice"]["amount"] == 10_000
    await world.turn()
    assert world.engine.containers == {}


async def test_payment_starts_it_and_is_credited_once(world):
    pubkey = await world.deployed()
    for _ in range(3):
        await world.turn()

    assert await world.balance(container_account(pubkey)) == 5_000
    assert world.engine.containers[pubkey]["up"]
    await world.audit()


async def test_it_runs_by_digest_never_by_tag(world):
    pubkey = await world.deployed()

    assert world.engine.containers[pubkey]["spec"].image == "example.com/app@sha256:" + "ab" * 32


async def test_an_hour_costs_exactly_the_price(world):
    pubkey = await world.deployed(amount_sat=100)
    await world.run(3_600, step_s=7)
    charged = 100_000 - await world.balance(container_account(pubkey))
    cost = world.engine.total_ran_ms(pubkey) * 5_000 // 3_600_000
    not_charged_yet = 5_000 * 67 // 3_600 + 1  # a charge period and a step

    assert cost - not_charged_yet <= charged <= cost
    await world.audit()


async def test_low_balance_is_told_once_then_it_pauses_then_a_topup_resumes(world):
    pubkey = await world.deployed()
    await world.run(3_700, step_s=10)
    row = await world.row(pubkey)

    assert State.PAUSED is row.state
    assert not world.engine.containers[pubkey]["up"]
    assert await world.balance(container_account(pubkey)) < 2
    before = world.engine.total_ran_ms(pubkey)
    await world.run(100, step_s=10)
    assert before == world.engine.total_ran_ms(pubkey), "it does not run while it is not paid for"

    result = await world.call("topup", "f" * 64, pubkey=pubkey, amount_sat=10)
    world.wallet.settle(result["invoice"]["payment_hash"])
    await world.run(3)
    assert State.DEPLOYED is (await world.row(pubkey)).state
    assert world.engine.containers[pubkey]["up"]
    await world.audit()


async def test_what_cannot_be_pulled_costs_nothing_and_is_withdrawable(world):
    world.engine.problem = CannotStart("no such image", permanent=True)
    pubkey = await world.deployed()
    row = await world.row(pubkey)

    assert (row.state, row.reason) == (State.FAILED, "no such image")
    assert await world.balance(container_account(pubkey)) == 5_000
    topup = await world.call("topup", pubkey=pubkey, amount_sat=20)
    world.wallet.settle(topup["invoice"]["payment_hash"])
    await world.turn()
    assert 14 == (await world.call("balance", pubkey=pubkey))["withdrawable_sat"]


async def test_what_exits_at_once_costs_nothing(world):
    world.engine.exits_at_once = True
    pubkey = await world.deployed()
    await world.run(10)

    assert State.FAILED is (await world.row(pubkey)).state
    assert 3 == world.engine.started
    assert await world.balance(container_account(pubkey)) == 5_000


async def test_what_crashes_later_is_started_again_and_must_prove_itself(world):
    pubkey = await world.deployed()
    await world.run(70)
    assert Progress.PROVEN is (await world.row(pubkey)).trial.progress
    world.engine.kill(pubkey)
    await world.run(3)

    assert world.engine.containers[pubkey]["up"]
    assert Progress.STARTED is (await world.row(pubkey)).trial.progress


async def test_dying_before_each_charge_is_not_free(world):
    pubkey = await world.deployed(amount_sat=100)
    for _ in range(10):
        await world.run(59)
        world.engine.kill(pubkey)
        await world.turn()
    charged = 100_000 - await world.balance(container_account(pubkey))
    price = world.engine.total_ran_ms(pubkey) * 5_000 / 3_600_000

    assert 0.97 * price <= charged <= price
    await world.audit()


async def test_an_engine_that_is_briefly_away_is_waited_for(world):
    world.engine.problem = CannotStart("connection refused", permanent=False)
    pubkey = await world.deployed()
    assert State.DEPLOYED is (await world.row(pubkey)).state
    world.engine.problem = None
    await world.turn()

    assert world.engine.containers[pubkey]["up"]


async def test_unpaid_places_expire_give_their_ports_back_and_late_payments_are_credited(world):
    result = await world.call("deploy", docker="example.com/app:1", units=50)
    pubkey = result["pubkey"]
    assert 50 == await world.store.read(held_units)
    await world.run(1_300, step_s=100)
    assert State.EXPIRED is (await world.row(pubkey)).state
    assert 0 == await world.store.read(held_units)
    assert set() == await world.store.read(lambda tx: tx.ports.taken())

    await paid_late(world, result)
    assert State.EXPIRED is (await world.row(pubkey)).state
    assert 250_000 == await world.balance(container_account(pubkey))
    _, done = await withdrawal(world, pubkey, 100_000)
    assert "settled" == done["state"]


async def paid_late(world, deployed):
    """The wallet says so by itself: nobody asks any more about what it said was not paid in time."""
    payment_hash = deployed["invoice"]["payment_hash"]
    world.wallet.settle(payment_hash)
    await look_up(world.ctx, payment_hash)


async def test_nobody_asks_for_ever_about_what_was_not_paid_in_time(world):
    for _ in range(3):
        await world.call(
            "deploy", SecretKey.generate().pubkey, docker="example.com/app:1", units=1
        )
    await world.run(1_300, step_s=100)
    asked = world.wallet.looks
    await world.run(24 * 3_600, step_s=600)

    assert 0 < asked == world.wallet.looks


async def test_a_late_payment_can_still_be_deployed_by_its_admin(world):
    result = await world.call("deploy", docker="example.com/app:1", units=5)
    await world.run(1_300, step_s=100)
    await paid_late(world, result)
    await world.call("restart", pubkey=result["pubkey"])
    await world.turn()

    assert world.engine.containers[result["pubkey"]]["up"]
    assert 1 == len((await world.row(result["pubkey"])).ports)


async def test_what_was_paid_in_time_is_started_even_when_we_were_away(world):
    """The wallet, or we, were down from right after the payment until long after the invoice's end."""
    result = await world.call("deploy", docker="example.com/app:1", units=1)
    world.wallet.settle(result["invoice"]["payment_hash"])
    world.wallet.silent = True
    await world.run(1_200, step_s=100)
    assert State.WAITING is (await world.row(result["pubkey"])).state
    world.wallet.silent = False
    await world.run(130, step_s=10)

    assert State.DEPLOYED is (await world.row(result["pubkey"])).state


async def test_a_wallet_that_stays_silent_does_not_hold_the_place_for_ever(world):
    result = await world.call("deploy", docker="example.com/app:1", units=1)
    world.wallet.silent = True
    await world.run(5_000, step_s=200)

    assert State.EXPIRED is (await world.row(result["pubkey"])).state


async def test_places_that_were_never_paid_leave_nothing_behind(world):
    for number in range(3):
        caller = SecretKey.generate().pubkey
        await world.call(
            "deploy", caller, docker="example.com/app:1", name=f"app-{number}", units=1
        )
    await world.run(2 * 24 * 3_600, step_s=3_600)

    assert [] == await world.store.read(lambda tx: tx.containers.list_in(tuple(State)))


async def test_unpaid_places_together_hold_only_a_share(world):
    assert not isinstance(
        await world.call("deploy", docker="example.com/app:1", units=40), Refusal
    )
    refused = await world.call("deploy", "f" * 64, docker="example.com/app:1", units=20)

    assert Code.UNAVAILABLE is refused.code
    assert "wait for payment" in refused.text


async def test_a_clock_that_was_ahead_does_not_put_anything_off_for_long(world):
    world.clock.unix += 86_400
    result = await world.call("deploy", docker="example.com/app:1", units=1)
    await world.turn()
    world.clock.unix -= 86_400
    world.wallet.settle(result["invoice"]["payment_hash"])
    await world.run(5)

    assert State.DEPLOYED is (await world.row(result["pubkey"])).state


async def test_capacity_is_not_oversold(world):
    await world.deployed(units=50)
    await world.deployed(units=40)
    refused = await world.call("deploy", docker="example.com/app:1", units=11)

    assert Code.UNAVAILABLE is refused.code
    assert not isinstance(
        await world.call("deploy", docker="example.com/app:1", units=10), Refusal
    )


async def test_one_caller_may_hold_only_a_few_unpaid(world):
    for _ in range(3):
        assert not isinstance(
            await world.call("deploy", docker="example.com/app:1", units=1), Refusal
        )

    assert (
        Code.RATE_LIMITED is (await world.call("deploy", docker="example.com/app:1", units=1)).code
    )
    other = await world.call("deploy", "f" * 64, docker="example.com/app:1", units=1)
    assert not isinstance(other, Refusal)


async def test_a_long_pause_gives_the_units_back_but_keeps_the_data(world):
    pubkey = await world.deployed(units=50)
    await world.run(3_700, step_s=50)
    assert State.PAUSED is (await world.row(pubkey)).state
    await world.run(3_700, step_s=100)
    assert State.SHELVED is (await world.row(pubkey)).state
    assert await world.store.read(held_units) == 0
    assert pubkey in world.engine.containers, "its data is kept"

    world.clock.advance(15 * 24 * 3_600)
    await world.turn()
    assert State.STOPPED is (await world.row(pubkey)).state
    assert pubkey not in world.engine.containers
    assert set() == await world.store.read(lambda tx: tx.ports.taken())


async def test_a_shelved_container_that_is_paid_waits_for_room(world):
    pubkey = await world.deployed(units=50)
    await world.run(7_500, step_s=100)
    other = [await world.deployed(units=50), await world.deployed(units=50)]
    topup = await world.call("topup", pubkey=pubkey, amount_sat=1_000)
    world.wallet.settle(topup["invoice"]["payment_hash"])
    await world.turn()
    assert State.SHELVED is (await world.row(pubkey)).state
    assert Code.UNAVAILABLE is (await world.call("restart", pubkey=pubkey)).code

    await world.call("stop", pubkey=other[0], force=True)
    assert (await world.call("restart", pubkey=pubkey))["state"] == "deployed"


async def test_stop_asks_first_deletes_then_and_keeps_the_balance(world):
    pubkey = await world.deployed()
    asked = await world.call("stop", pubkey=pubkey)
    assert asked["confirm"]
    assert State.DEPLOYED is (await world.row(pubkey)).state
    done = await world.call("stop", pubkey=pubkey)
    await world.turn()

    assert not done["confirm"]
    assert pubkey not in world.engine.containers
    assert await world.balance(container_account(pubkey)) == 5_000


async def test_a_confirmation_that_comes_too_late_asks_again(world):
    pubkey = await world.deployed(amount_sat=100)
    await world.call("stop", pubkey=pubkey)
    world.clock.advance(601)

    assert (await world.call("stop", pubkey=pubkey))["confirm"]


@pytest.mark.parametrize("method", ["info", "logs", "restart", "stop", "withdraw"])
async def test_only_the_admin_may(world, method):
    pubkey = await world.deployed()
    params = (
        {"invoice": world.wallet.mint("x", 1_000, None, 60).bolt11} if method == "withdraw" else {}
    )

    refused = await world.call(method, "f" * 64, pubkey=pubkey, **params)

    assert Code.RESTRICTED is refused.code
    assert State.DEPLOYED is (await world.row(pubkey)).state


async def test_info_never_shows_values_of_the_environment(world):
    pubkey = await world.deployed(env={"TOKEN": "hunter2"})
    shown = str(await world.call("info", pubkey=pubkey)) + repr(await world.row(pubkey))

    assert "TOKEN" in shown
    assert "hunter2" not in shown
    assert world.engine.containers[pubkey]["spec"].env["TOKEN"] == "hunter2"


# -- withdrawals ------------------------------------------------------------------------------------


async def withdrawal(world, pubkey, amount_msat=1_000):
    invoice = world.wallet.mint("stranger", amount_msat, None, 600)
    world.wallet.invoices.pop(invoice.payment_hash)
    return invoice, await world.call("withdraw", pubkey=pubkey, invoice=invoice.bolt11)


async def test_withdraw_pays_and_returns_the_unused_reserve(world):
    pubkey = await world.deployed(amount_sat=100)
    world.wallet.fee_msat = 500
    _, result = await withdrawal(world, pubkey, 50_000)

    assert result["state"] == "settled"
    assert await world.balance(container_account(pubkey)) == 100_000 - 50_000 - 500
    await world.audit()


@pytest.mark.parametrize("end", [PayStatus.SETTLED, PayStatus.FAILED])
async def test_an_unknown_withdrawal_waits_for_the_wallets_word(world, end):
    pubkey = await world.deployed(amount_sat=100)
    world.wallet.next_pay = PayStatus.UNKNOWN
    invoice, result = await withdrawal(world, pubkey, 50_000)
    assert result["state"] == "unknown"
    again = await world.call("withdraw", pubkey=pubkey, invoice=invoice.bolt11)
    assert Code.INVALID is again.code, "the same invoice is not paid a second time"
    await world.run(300, step_s=30)
    assert await world.balance(container_account(pubkey)) <= 100_000 - 50_000

    world.wallet.finish(invoice.payment_hash, end)
    await world.run(20, step_s=10)
    assert world.wallet.pays_sent == 1
    await world.audit()


async def test_fees_beyond_the_reserve_are_the_tenants_as_far_as_the_balance_reaches(world):
    pubkey = await world.deployed(amount_sat=100)
    world.wallet.fee_msat = 15_000
    await withdrawal(world, pubkey, 50_000)
    assert 35_000 == await world.balance(container_account(pubkey))
    assert 0 == await world.balance("revenue")
    await world.audit()


async def test_fees_beyond_the_balance_are_our_loss(world):
    pubkey = await world.deployed(amount_sat=100)
    await world.deployed(amount_sat=100)
    world.wallet.fee_msat = 15_000
    await withdrawal(world, pubkey, 89_000)

    assert 0 == await world.balance(container_account(pubkey))
    assert -4_000 == await world.balance("revenue")
    await world.audit()


async def test_a_failed_withdrawal_takes_nothing_and_its_invoice_is_never_tried_again(world):
    """A wallet's book knows payments by hash: an old failure read as the new try's would pay twice."""
    pubkey = await world.deployed(amount_sat=100)
    world.wallet.next_pay = PayStatus.FAILED
    invoice, refused = await withdrawal(world, pubkey)
    assert Code.UNAVAILABLE is refused.code
    assert 100_000 == await world.balance(container_account(pubkey))
    assert (
        Code.INVALID is (await world.call("withdraw", pubkey=pubkey, invoice=invoice.bolt11)).code
    )
    assert 1 == world.wallet.pays_sent
    _, again = await withdrawal(world, pubkey)
    assert "settled" == again["state"]
    await world.audit()


async def test_a_request_that_never_arrived_is_failed_only_when_its_invoice_is_over(world):
    pubkey = await world.deployed(amount_sat=100)
    world.wallet.next_pay = PayStatus.UNKNOWN
    witness, _ = await withdrawal(world, pubkey, 1_000)
    await world.run(2)
    world.wallet.finish(witness.payment_hash, PayStatus.FAILED)
    world.wallet.next_pay = PayStatus.ABSENT
    await withdrawal(world, pubkey, 50_000)
    await world.run(600, step_s=60)
    assert 1 == len(await world.store.read(lambda tx: tx.outgoing.list_unknown()))
    await world.run(240, step_s=60)

    assert [] == await world.store.read(lambda tx: tx.outgoing.list_unknown())
    assert 100_000 - 2_000 < await world.balance(container_account(pubkey)) < 100_000
    await world.audit()


async def test_a_payout_that_fails_after_the_pause_lets_it_run_again(world):
    pubkey = await world.deployed(amount_sat=100)
    world.wallet.next_pay = PayStatus.UNKNOWN
    most = (await world.call("balance", pubkey=pubkey))["withdrawable_sat"]
    invoice, _ = await withdrawal(world, pubkey, most * 1_000)
    await world.run(120, step_s=20)
    assert State.SHELVED is (await world.row(pubkey)).state, "who took it out keeps no place"
    world.wallet.finish(invoice.payment_hash, PayStatus.FAILED)
    await world.run(30, step_s=5)

    assert State.DEPLOYED is (await world.row(pubkey)).state
    assert world.engine.containers[pubkey]["up"]


async def test_an_invoice_of_ours_cannot_be_paid_by_us(world):
    pubkey = await world.deployed(amount_sat=100)
    own = await world.call("topup", pubkey=pubkey, amount_sat=10)

    refused = await world.call("withdraw", pubkey=pubkey, invoice=own["invoice"]["invoice"])
    assert Code.INVALID is refused.code
    assert 0 == world.wallet.pays_sent


async def test_an_invoice_that_lives_for_weeks_is_refused(world):
    pubkey = await world.deployed(amount_sat=100)
    long = world.wallet.mint("stranger", 1_000, None, 3 * 24 * 3_600)

    assert Code.INVALID is (await world.call("withdraw", pubkey=pubkey, invoice=long.bolt11)).code


async def test_a_lost_answer_is_found_in_the_wallets_book(world):
    pubkey = await world.deployed(amount_sat=100)
    world.wallet.answer_pay = False
    _, result = await withdrawal(world, pubkey, 50_000)
    assert result["state"] == "unknown"
    await world.turn()

    assert await world.store.read(lambda tx: tx.outgoing.list_unknown()) == []
    await world.audit()


async def test_more_than_the_balance_cannot_be_withdrawn(world):
    pubkey = await world.deployed(amount_sat=100)
    _, refused = await withdrawal(world, pubkey, 99_000)

    assert Code.INSUFFICIENT_BALANCE is refused.code
    most = (await world.call("balance", pubkey=pubkey))["withdrawable_sat"]
    _, done = await withdrawal(world, pubkey, most * 1_000)
    assert done["state"] == "settled"


# -- hostile wallets --------------------------------------------------------------------------------


async def test_a_settlement_over_less_than_the_invoice_is_no_settlement(world):
    world.wallet.wrong_amount = True
    pubkey = await world.deployed()

    assert State.WAITING is (await world.row(pubkey)).state
    assert await world.balance(container_account(pubkey)) == 0


async def test_a_silent_wallet_makes_nobody_poorer(world):
    pubkey = await world.deployed()
    world.wallet.silent = True
    refused = await world.call("topup", pubkey=pubkey, amount_sat=5)
    await world.run(10)

    assert Code.UNAVAILABLE is refused.code
    assert State.DEPLOYED is (await world.row(pubkey)).state


async def test_settled_then_not_changes_nothing(world):
    pubkey = await world.deployed()
    for invoice in world.wallet.invoices.values():
        invoice["settled"] = False
    await world.run(30)

    assert State.DEPLOYED is (await world.row(pubkey)).state
    assert (
        IncomingState.NOT_YET
        is (await world.wallet.look_up(next(iter(world.wallet.invoices)), None)).state
    )


# -- per-container wallets --------------------------------------------------------------------------


async def test_per_container_wallets_hold_the_money_and_are_swept(world):
    from handlers.duties.sweep import sweep

    world.wallet.per_container = True
    pubkey = await world.deployed(amount_sat=1_000)
    wallet = f"wallet:{pubkey}"
    assert world.wallet.balances[wallet] == 1_000_000
    world.ctx = with_policy(world.ctx, sweep_msat=1_000, fee_reserve_min_msat=2_000)
    await world.run(3_600, step_s=20)
    await sweep(world.ctx)

    assert world.wallet.balances[MAIN_WALLET] >= 2_000
    assert world.wallet.balances[wallet] >= await world.balance(container_account(pubkey))
    await world.audit()


async def test_money_that_came_by_itself_is_credited_once(world):
    from handlers.duties.incoming import look_up_wallet_of

    world.wallet.per_container = True
    pubkey = await world.deployed()
    world.wallet.deposit(f"wallet:{pubkey}", 21_000)
    for _ in range(3):
        await look_up_wallet_of(world.ctx, pubkey)

    assert await world.balance(container_account(pubkey)) == 26_000
    await world.audit()
