"""Money that comes late, or where nobody looks any more, is its owner's all the same; no notification is needed."""

import pytest

from handlers.domain.ledger import MAIN_WALLET, container_account
from handlers.duties.incoming import look_up, look_up_wallet_of
from handlers.ports import PayStatus
from handlers.records import Intent, InvoiceState
from handlers.zap import pay_callback
from tests.attacks.test_paid_twice import stopped_with, withdraw
from tests.fakes import with_policy

TOPUP_MSAT = 500_000


async def topup(world, pubkey):
    return (await world.call("topup", pubkey=pubkey, amount_sat=500))["invoice"]["payment_hash"]


async def invoice(world, payment_hash):
    return await world.store.read(lambda tx: tx.invoices.find(payment_hash))


async def archived(world):
    """A container that ran, was stopped with nothing left, and left the books; and an invoice of it."""
    pubkey = await world.deployed()
    payment_hash = await topup(world, pubkey)
    await world.run(3_600, step_s=60)
    await world.call("stop", pubkey=pubkey, force=True)
    await world.run(2 * 3_600, step_s=60)
    # Announcements go out in another turn than the one that takes it out.
    await world.run(2 * 3_600, step_s=60)
    assert await world.row(pubkey) is None
    return pubkey, payment_hash


@pytest.mark.parametrize("paid_first", [True, False])
async def test_what_is_paid_around_a_stop_is_credited(world, paid_first):
    """The top-up was paid in the seconds before the stop, or right after: the invoice was closed unseen."""
    pubkey = await world.deployed()
    await world.run(120)
    payment_hash = await topup(world, pubkey)
    await world.run(2)
    if paid_first:
        world.wallet.settle(payment_hash)
    await world.call("stop", pubkey=pubkey, force=True)
    if not paid_first:
        world.wallet.settle(payment_hash)
    await world.run(900, step_s=30)

    assert TOPUP_MSAT < await world.balance(container_account(pubkey)) < TOPUP_MSAT + 5_000
    _, paid = await withdraw(world, pubkey, 400_000)
    assert "settled" == paid["state"]


async def is_put_off(world, payment_hash):
    """Whether it is next asked about when it can hardly be paid any more."""
    record = await invoice(world, payment_hash)
    return min(record.expires_at, world.clock.now() + 600) <= record.next_look_at


async def test_strangers_cannot_make_a_zap_go_unseen(world):
    """Twenty more callbacks, and nobody asked about the first zapper's invoice again."""
    pubkey = await world.deployed(amount_sat=1_000)
    answer = await pay_callback(world.ctx, pubkey, 21_000, None)
    (payment_hash,) = [h for h, i in world.wallet.invoices.items() if i["bolt11"] == answer["pr"]]
    for _ in range(30):
        await pay_callback(world.ctx, pubkey, 1_000, None)
    assert await is_put_off(world, payment_hash)
    world.wallet.settle(payment_hash)
    await world.run(900, step_s=30)

    assert InvoiceState.SETTLED is (await invoice(world, payment_hash)).state


async def test_what_was_let_go_is_asked_about_once_more_and_no_more(world):
    pubkey = await world.deployed(amount_sat=1_000)
    for _ in range(50):
        await pay_callback(world.ctx, pubkey, 1_000, None)
    await world.call("stop", pubkey=pubkey, force=True)
    asked = world.wallet.looks
    await world.run(570, step_s=30)
    assert asked == world.wallet.looks
    await world.run(600, step_s=30)
    in_all = world.wallet.looks
    await world.run(2 * 3_600, step_s=30)

    assert asked + 50 <= in_all <= asked + 150, (
        "when it can be paid no more, and twice around its end"
    )
    assert in_all == world.wallet.looks


async def test_a_look_that_was_under_way_opens_nothing_again(world):
    pubkey = await world.deployed()
    payment_hash = await topup(world, pubkey)
    await world.call("stop", pubkey=pubkey, force=True)
    await look_up(world.ctx, payment_hash)

    assert await is_put_off(world, payment_hash)


async def test_what_an_archived_container_is_paid_is_its_admins(world):
    """It lay in an account of which nobody could ask anything."""
    pubkey, payment_hash = await archived(world)
    world.wallet.settle(payment_hash)
    await look_up(world.ctx, payment_hash)
    listed = (await world.call("list"))["containers"]
    _, paid = await withdraw(world, pubkey, 400_000)

    assert [(pubkey, "stopped", 500)] == [
        (row["pubkey"], row["detail"], row["balance_sat"]) for row in listed
    ]
    assert "settled" == paid["state"]
    await world.audit()


async def test_an_archived_containers_own_wallet_is_still_looked_into(world):
    world.wallet.per_container = True
    pubkey, _ = await archived(world)
    world.wallet.deposit(f"wallet:{pubkey}", TOPUP_MSAT)
    await look_up_wallet_of(world.ctx, pubkey)
    _, paid = await withdraw(world, pubkey, 400_000)

    assert "settled" == paid["state"]
    await world.audit()


async def test_what_came_back_leaves_again_when_it_is_empty(world):
    world.ctx = with_policy(world.ctx, fee_reserve_ppm=0, fee_reserve_min_msat=0)
    pubkey, payment_hash = await archived(world)
    world.wallet.settle(payment_hash)
    await look_up(world.ctx, payment_hash)
    assert await world.row(pubkey) is not None
    await withdraw(world, pubkey, TOPUP_MSAT)
    await world.run(300, step_s=60)

    assert await world.row(pubkey) is None


async def test_who_gets_his_own_money_back_is_not_told_that_he_was_paid(world):
    pubkey = await stopped_with(world, 1_000)
    world.wallet.next_pay = PayStatus.FAILED
    await withdraw(world, pubkey, 500_000)
    items = await world.store.read(lambda tx: tx.outbox.list_due(world.clock.now() + 600, 100))
    said = [item.body for item in items if item.intent is Intent.MESSAGE]

    assert [
        "got the money of a failed withdrawal back while stopped" in text for text in said
    ] == [True]


async def test_what_was_earned_in_a_wallet_of_its_own_is_swept_before_it_is_archived(world):
    """A sweep that failed is tried again after an hour; failed twice, the container had left the books, for good."""
    world.wallet.per_container = True
    pubkey = await world.deployed(units=50)
    policy = world.ctx.policy
    world.ctx = with_policy(world.ctx, sweep_msat=10**9)
    await world.run(3_600, step_s=60)
    await world.call("stop", pubkey=pubkey, force=True)
    world.ctx = with_policy(world.ctx, sweep_msat=policy.sweep_msat)
    for _ in range(2):
        world.wallet.next_pay = PayStatus.FAILED
        await world.run(1_860, step_s=60)
    await world.run(4 * 3_600, step_s=60)

    assert 200_000 < world.wallet.balances[MAIN_WALLET] < 250_000
    assert await world.row(pubkey) is None
    await world.audit()
