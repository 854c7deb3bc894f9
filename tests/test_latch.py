"""States that come and go: nobody waits on one for ever."""

import trio

from bot.latch import Latch


async def test_who_waits_is_let_through_however_often_it_was_shut(autojump_clock):
    latch, through = Latch(), []

    async def wait():
        await latch.wait()
        through.append(latch.is_open)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(1)
        latch.shut()
        latch.shut()
        assert through == []
        latch.open()
        # Shut again before the waiter runs: it is let through all the same.
        latch.shut()

    assert through == [False]
    with trio.move_on_after(1) as scope:
        await latch.wait()
    assert scope.cancelled_caught, "it is shut for who comes now"
