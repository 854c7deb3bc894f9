"""Who makes us wait for a registry takes nobody's quote, top-up or withdrawal away."""

import pytest
import trio
import trio.testing

from bot.server.dispatch import Request, dispatch
from bot.server.intake import MAX_REQUESTS_AT_ONCE
from handlers.context import Caller
from handlers.domain.lane import slow_lanes
from handlers.errors import Refusal
from nips.keys import SecretKey


@pytest.fixture
def dripping(world):
    """Registries that never answer, but for one; as many wait for them as are let in."""
    answer = world.registry.resolve

    async def resolve(ref, caller=""):
        if ref.host != "example.com":
            await trio.sleep_forever()
        return await answer(ref, caller)

    world.registry.resolve = resolve


async def ask(world, method, **params):
    request = Request(Caller(SecretKey.generate().pubkey, False), method, params, "rpc")
    return (await dispatch(world.ctx, request)).outcome


async def test_a_hundred_quotes_at_a_dripping_registry_stop_nobody(world, dripping):
    """Ninety-six is what the line to the registries holds."""
    pubkey = await world.deployed()
    async with trio.open_nursery() as nursery:
        for number in range(96):
            slow = f"drip{number % 3}.example/app:1"
            nursery.start_soon(lambda image=slow: ask(world, "quote", docker=image, units=1))
        await trio.testing.wait_all_tasks_blocked()
        topup = await ask(world, "topup", pubkey=pubkey, amount_sat=20)
        quote = await ask(world, "quote", docker="example.com/app:1", units=1)
        nursery.cancel_scope.cancel()

    assert not isinstance(topup, Refusal), topup
    assert not isinstance(quote, Refusal), quote


def test_all_lanes_together_leave_room_for_what_is_quick():
    widths = sum(lane.at_once for lane in slow_lanes().values())
    assert 0 < widths < MAX_REQUESTS_AT_ONCE
