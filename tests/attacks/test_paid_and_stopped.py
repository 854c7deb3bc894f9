"""Money that comes to a container which is stopped before anybody has seen it: it is its admin's all the same."""

import pytest

from handlers.commands.topup import mint_for
from handlers.domain.ledger import container_account


@pytest.mark.parametrize("per_container", [False, True])
@pytest.mark.parametrize("paid_after_the_stop", [False, True])
async def test_it_is_credited_without_a_word_of_the_wallet(
    world, per_container, paid_after_the_stop
):
    """The wallet's notification is lost, as when the server dies at that moment."""
    world.wallet.per_container = per_container
    pubkey = await world.deployed()
    asked = (await world.call("topup", pubkey=pubkey, amount_sat=50))["invoice"]
    if not paid_after_the_stop:
        world.wallet.settle(asked["payment_hash"])
    await world.call("stop", pubkey=pubkey, force=True)
    before = await world.balance(container_account(pubkey))
    if paid_after_the_stop:
        world.wallet.settle(asked["payment_hash"])
    await world.run(900, 5)

    after = await world.balance(container_account(pubkey))
    # What it ran while it was being stopped is charged.
    assert before + 49_900 <= after <= before + 50_000
    await world.audit()


async def test_the_wallet_is_asked_about_the_unpaid_ones_of_a_stopped_container_at_their_end_only(
    world,
):
    pubkey = await world.deployed()
    await world.call("topup", pubkey=pubkey, amount_sat=50)
    await world.call("stop", pubkey=pubkey, force=True)
    world.wallet.looks = 0
    await world.run(590, 5)
    assert world.wallet.looks == 0
    await world.run(4_000, 5)
    assert 1 <= world.wallet.looks <= 4


@pytest.mark.parametrize("per_container", [False, True])
async def test_a_zap_that_a_flood_of_callbacks_pushed_aside_is_credited(world, per_container):
    """Nobody pays the others, and the wallet's word of this one is lost."""
    world.wallet.per_container = per_container
    pubkey = await world.deployed()
    zap = await mint_for(world.ctx, None, pubkey, 50_000, "zap", "0" * 64)
    for _ in range(60):
        await mint_for(world.ctx, None, pubkey, 1_000, "zap", "0" * 64)
    world.wallet.settle(zap.payment_hash)
    before = await world.balance(container_account(pubkey))
    await world.run(790, 5)
    await world.call("stop", pubkey=pubkey, force=True)

    assert await world.balance(container_account(pubkey)) > before + 40_000
    await world.audit()


async def test_invoices_that_were_pushed_aside_cost_the_wallet_a_look_or_two_each(world):
    pubkey = await world.deployed()
    for _ in range(200):
        await mint_for(world.ctx, None, pubkey, 1_000, "zap", "0" * 64)
    world.wallet.looks = 0
    await world.run(2, 1)
    assert world.wallet.looks <= 2 * world.ctx.policy.max_open_invoices
