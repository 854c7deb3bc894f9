"""Places by address and in all; turns in rotation."""

from contextlib import ExitStack

import pytest
import trio

from bot.relay.gate import Gate, network_of, places
from bot.relay.turns import Turns


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff::2", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::1"),
        ("somewhere", "somewhere"),
    ],
)
def test_an_ipv6_customer_is_one(address, network):
    assert network_of(address) == network


def test_descriptors_are_kept_for_ourselves():
    assert places(10, 0.5) == 10
    assert 0 < places(10**9, 0.5) < 10**9


async def test_one_address_has_so_many_places_and_gives_them_back():
    gate = Gate(100, 2)
    with ExitStack() as stack:
        assert [stack.enter_context(gate.place("a")) for _ in range(3)] == [True, True, False]
        assert len(gate) == 2
        with gate.place("b") as is_free:
            assert is_free
    assert len(gate) == 0
    with gate.place("a") as is_free:
        assert is_free


async def test_own_addresses_have_more_but_not_all():
    gate = Gate(8, 2)
    with ExitStack() as stack:
        given = [stack.enter_context(gate.place("127.0.0.1")) for _ in range(8)]
        assert given == [True] * 6 + [False] * 2


async def hold(gate, network, held, lost, task_status):
    with gate.place(network) as is_free:
        task_status.started(is_free)
        if is_free:
            held.append(network)
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                lost.append(network)
                raise


async def test_when_all_places_are_taken_the_crowd_makes_room():
    gate, held, lost = Gate(6, 4), [], []
    async with trio.open_nursery() as nursery:

        async def come(network):
            return await nursery.start(
                lambda task_status: hold(gate, network, held, lost, task_status)
            )

        for network in "aaaabb":
            assert await come(network)
        assert not await come("a"), "the crowd itself"
        assert await come("c")
        await trio.testing.wait_all_tasks_blocked()
        assert lost == ["a"]
        assert await come("d")
        await trio.testing.wait_all_tasks_blocked()
        assert lost == ["a", "a"]
        # a and b have two each, c and d one: a newcomer still comes in at the cost of those with two ...
        assert not await come("c"), "... but nobody who would have as many himself"
        assert len(gate) == 6
        nursery.cancel_scope.cancel()
    assert len(gate) == 0


async def test_turns_go_round_by_guest():
    turns, order = Turns(1), []

    async def ask(guest, number):
        async with turns.turn(guest):
            order.append((guest, number))
            await trio.sleep(0)

    async with trio.open_nursery() as nursery, turns.turn("x"):
        for number in range(5):
            nursery.start_soon(ask, "greedy", number)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, "other", 0)
        await trio.testing.wait_all_tasks_blocked()
        assert turns.waiting == 6
    assert order.index(("other", 0)) <= 1
    assert [n for g, n in order if g == "greedy"] == sorted(n for g, n in order if g == "greedy")
    assert turns.waiting == 0


async def test_one_guest_has_one_turn_at_a_time():
    turns, at_once, most = Turns(3), 0, 0

    async def ask():
        nonlocal at_once, most
        async with turns.turn("greedy"):
            at_once += 1
            most = max(most, at_once)
            await trio.sleep(0)
            at_once -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert most == 1


async def test_who_gives_up_waiting_keeps_nobody_else():
    turns = Turns(1)
    async with turns.turn("a"):
        with trio.move_on_after(0):
            async with turns.turn("b"):
                pass
        assert turns.waiting == 0
    with trio.fail_after(1):
        async with turns.turn("c"):
            pass
