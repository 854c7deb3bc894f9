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
