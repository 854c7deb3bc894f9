"""Nudges, which wake loops early."""

import trio

from bot.server.parts import Nudge


async def test_nudges_wake_a_loop_early_and_many_are_one(autojump_clock):
    nudge, started = Nudge(), trio.current_time()
    nudge()
    nudge()
    assert await nudge.wait(100)
    assert started == trio.current_time()
    assert not await nudge.wait(100)
    assert started + 100 == trio.current_time()


async def test_a_nudge_wakes_all_who_wait_though_one_gave_up(autojump_clock):
    """Whoever's time is over must not take away what another one waits on."""
    nudge, woken = Nudge(), []

    async def wait(at_most_s):
        woken.append((at_most_s, await nudge.wait(at_most_s)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 1)
        nursery.start_soon(wait, 100)
        await trio.sleep(2)
        started = trio.current_time()
        nudge()

    assert [(1, False), (100, True)] == woken
    assert started == trio.current_time()
