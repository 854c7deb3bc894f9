"""Money that comes to a container which is stopped before anybody has seen it: it is its admin's all the same."""

import pytest

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
