"""What one payment's route cost teaches us what to hold back; it must not become everybody's burden."""

from handlers.domain.ledger import container_account
from nips.keys import SecretKey
from tests.attacks.test_paid_twice import stopped_with, withdraw


async def withdrawable(world, pubkey):
    answer = await world.call("balance", SecretKey.generate().pubkey, pubkey=pubkey)
    return answer["withdrawable_sat"]


async def test_a_small_payment_with_a_dear_route_does_not_bar_others_from_their_money(world):
    """2 sat by a route that cost 30: held back was ten times the amount, from everybody, for thirty days."""
    victim, thief = await stopped_with(world, 100_000), await stopped_with(world, 1_000)
    world.wallet.fee_msat = 30_000
    await withdraw(world, thief, 2_000)
    world.wallet.fee_msat = 0

    assert 98_000 <= await withdrawable(world, victim) <= 99_000


async def test_small_payments_with_dear_routes_cost_us_something_once(world):
    revenue = []
    for _ in range(4):
        world.wallet.balances["wallet:main"] += 1_000_000
        pubkey = await stopped_with(world, 14)
        if await withdrawable(world, pubkey) >= 2:
            world.wallet.fee_msat = 30_000
            await withdraw(world, pubkey, 2_000)
            assert 0 == await world.balance(container_account(pubkey))
        revenue.append(await world.balance("revenue"))

    assert -30_000 < revenue[0] < 0
    assert [revenue[0]] * 3 == revenue[1:]


async def test_what_a_large_payment_cost_is_held_back_from_large_ones(world):
    pubkey = await stopped_with(world, 100_000)
    world.wallet.fee_msat = 510_000
    await withdraw(world, pubkey, 10_000_000)
    world.wallet.fee_msat = 0

    # 5 %, beside the 10 sat.
    assert (89_490 - 10) * 100 // 105 == await withdrawable(world, pubkey)
