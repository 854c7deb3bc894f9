"""The host sets the clock a month ahead: nobody's data goes for that, and nobody's place."""

import pytest

from handlers.domain.lifecycle import State
from tests.fakes import with_policy

DAY_S = 24 * 3_600


async def shelved(world):
    pubkey = await world.deployed()
    while State.SHELVED is not (await world.row(pubkey)).state:
        await world.run(60, step_s=60)
    return pubkey


@pytest.mark.parametrize("days", [30, -30])
async def test_a_step_of_the_clock_deletes_nobodys_data(world, days):
    pubkey = await shelved(world)
    world.clock.unix += days * DAY_S
    await world.run(3_600, step_s=60)
    assert State.SHELVED is (await world.row(pubkey)).state
    # And it is deleted when its time is over, by no more than it was kept before.
    await world.run(15 * DAY_S, step_s=3_600)
    row = await world.row(pubkey)
    assert row is None or State.STOPPED is row.state


async def test_a_step_back_that_follows_restores_what_was(world):
    pubkey = await shelved(world)
    since = (await world.row(pubkey)).state_since
    for step_s in (30 * DAY_S, -30 * DAY_S):
        world.clock.unix += step_s
        await world.run(10)

    assert since == (await world.row(pubkey)).state_since


async def test_a_step_of_the_clock_gives_no_start_up(world):
    """An hour ahead, every start that the moment hindered once was too late."""
    from handlers.ports import CannotStart

    world.engine.problem = CannotStart("the registry is busy", permanent=False)
    pubkey = await world.deployed()
    world.clock.unix += 3_600
    await world.run(10)

    assert State.DEPLOYED is (await world.row(pubkey)).state


async def test_what_begins_right_after_a_step_has_the_new_time_already(world):
    """Moved with the rest, an unpaid place would be held for a month."""
    await world.run(10)
    world.clock.unix += 30 * DAY_S
    result = await world.call("deploy", docker="example.com/app:1", units=1)
    await world.run(900, step_s=30)

    assert State.EXPIRED is (await world.row(result["pubkey"])).state


async def test_a_clock_that_creeps_is_noticed_as_well(world):
    pubkey = await shelved(world)
    world.ctx = with_policy(world.ctx, retention_s=3_600)
    for _ in range(120):
        world.clock.unix += 60
        await next(loop for loop in world.loops if loop.name == "upkeep").once(world.ctx)

    assert State.SHELVED is (await world.row(pubkey)).state
