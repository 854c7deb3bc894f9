"""Sixteen keys with four questions each at a registry that drips: who wants his money waits for none of them."""

import pytest
import trio
import trio.testing

from bot.server.dispatch import Request, dispatch
from bot.server.intake import MAX_REQUESTS_AT_ONCE
from handlers.context import Caller
from handlers.domain.lane import WIDTHS, WaitsFor
from handlers.errors import Code, Refusal
from nips.keys import SecretKey
from tests.attacks.test_paid_twice import stopped_with


@pytest.fixture
async def dripping(world, nursery):
    """A registry that never answers, and as many questions to it as fit."""
    pubkey = await stopped_with(world, 1_000)

    async def drip(ref, caller=""):
        await trio.sleep_forever()

    world.registry.resolve = drip
    for _ in range(WIDTHS[WaitsFor.REGISTRY] // 4 + 4):
        caller = SecretKey.generate().pubkey
        for _ in range(4):
            nursery.start_soon(
                ask, world, caller, "quote", {"docker": "evil.example/x:1", "units": 1}
            )
    await trio.testing.wait_all_tasks_blocked()
    yield pubkey
    nursery.cancel_scope.cancel()


async def ask(world, caller, method, params):
    request = Request(Caller(caller, public=False), method, params, "rpc")
    return (await dispatch(world.ctx, request)).outcome


async def test_money_goes_in_and_out_while_a_registry_drips(world, dripping):
    invoice = world.wallet.mint("stranger", 500_000, None, 600)
    world.wallet.invoices.pop(invoice.payment_hash)
    params = {"pubkey": dripping, "invoice": invoice.bolt11}
    out = await ask(world, world.admin, "withdraw", params)

    assert not isinstance(out, Refusal), out
    assert "settled" == out["state"]


async def test_whose_fault_it_is_is_said(world, dripping):
    out = await ask(world, world.admin, "quote", {"docker": "example.com/app:1", "units": 1})
    assert (Code.UNAVAILABLE, "others' requests of this kind take long; retry in a moment") == (
        out.code,
        out.text,
    )


def test_all_lanes_together_leave_room_for_what_is_quick():
    assert set(WaitsFor) == set(WIDTHS)
    assert 0 < sum(WIDTHS.values()) < MAX_REQUESTS_AT_ONCE
