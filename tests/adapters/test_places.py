"""Places by host and by caller: who waits, who overtakes, who is told that it is too much."""

import pytest
import trio

from bot.adapters.places import Bounds, Busy, Places

BOUNDS = Bounds(in_all=6, by_host=3, by_caller=2, waiting=4, waiting_by_caller=2)


class Holders:
    """Each takes a place and keeps it until told."""

    def __init__(self, places, nursery):
        self.places, self.nursery = places, nursery
        self.inside, self.busy, self._leave = [], {}, {}

    async def take(self, name, host, caller):
        self._leave[name] = trio.Event()
        self.nursery.start_soon(self._hold, name, host, caller)
        await trio.testing.wait_all_tasks_blocked()

    async def leave(self, name):
        self._leave[name].set()
        await trio.testing.wait_all_tasks_blocked()

    async def _hold(self, name, host, caller):
        try:
            async with self.places.take(host, caller):
                self.inside.append(name)
                await self._leave[name].wait()
            self.inside.remove(name)
        except Busy as busy:
            self.busy[name] = str(busy)


@pytest.fixture
def holders(nursery):
    places = Places(BOUNDS)
    for host in ("h", "g", "f"):
        places.answered(host)
    return Holders(places, nursery)


async def test_a_caller_has_few_places_and_others_overtake_him(holders):
    for name in ("a1", "a2", "a3"):
        await holders.take(name, "h", "a")
    await holders.take("b1", "h", "b")
    assert ["a1", "a2", "b1"] == holders.inside
    await holders.leave("a1")
    assert ["a2", "b1", "a3"] == holders.inside


async def test_a_host_has_few_places_and_other_hosts_are_not_kept(holders):
    for number in range(5):
        await holders.take(f"h{number}", "h", f"caller {number}")
    await holders.take("g1", "g", "x")
    assert ["h0", "h1", "h2", "g1"] == holders.inside


async def test_the_line_is_bounded_by_caller_and_in_all_with_words(holders):
    for number in range(5):
        await holders.take(f"a{number}", "h", "a")
    assert {"a4": "too many images are being asked for by you at this moment"} == holders.busy
    for number in range(4):
        await holders.take(f"b{number}", "h", f"b{number}")
    assert {"a4", "b3"} == set(holders.busy)
    assert "by others" in holders.busy["b3"]


async def test_hosts_that_never_answered_share_half(holders):
    for number in range(6):
        await holders.take(f"u{number}", f"unknown {number}", f"c{number}")
    assert ["u0", "u1", "u2"] == holders.inside
    await holders.take("h", "h", "x")
    assert "h" in holders.inside
    holders.places.failed("g")
    await holders.take("g", "g", "y")
    assert "g" not in holders.inside, "one that failed is unknown again"


async def test_who_gives_up_waiting_leaves_the_line(holders):
    for number in range(3):
        await holders.take(f"h{number}", "h", f"caller {number}")
    with trio.move_on_after(0.01):
        async with holders.places.take("h", "impatient"):
            pytest.fail("there is no place")
    await holders.take("next", "h", "patient")
    await holders.leave("h0")
    assert "next" in holders.inside


async def test_a_place_comes_back_whatever_happens(holders):
    for _ in range(20):
        with pytest.raises(ValueError):
            async with holders.places.take("h", "a"):
                raise ValueError
    await holders.take("a1", "h", "a")
    assert ["a1"] == holders.inside
