"""The caller's side of the command line."""

import pytest
import trio

import bot.tools.client
from bot.devstack.engine import free_port
from bot.tools.client import NoAnswer, open_client
from nips.event import sign_event
from nips.filters import Filter
from nips.keys import SecretKey
from tests.relay.conftest import relay


async def test_a_relay_that_comes_up_a_second_late_is_reached():
    port, key = free_port(), SecretKey.generate()

    async def late():
        await trio.sleep(1)
        async with relay(port=port):
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        with trio.fail_after(15):
            async with open_client(key, [f"ws://127.0.0.1:{port}"]) as client:
                await client.publish(1, "hi", [])
        nursery.cancel_scope.cancel()


async def test_a_relay_that_never_comes_is_named(monkeypatch):
    monkeypatch.setattr(bot.tools.client, "ANSWER_S", 0.5)
    with pytest.RaisesGroup(pytest.RaisesExc(NoAnswer, match=r"ws://127\.0\.0\.1:1")):
        async with open_client(SecretKey.generate(), ["ws://127.0.0.1:1"]):
            pass


async def test_what_was_heard_before_anybody_waited_is_found():
    event = sign_event(SecretKey.generate(), 1, "early", [], 1_700_000_000)
    async with relay() as (server, url), open_client(SecretKey.generate(), [url]) as client:
        await server.publish(event)
        client.watch(Filter(kinds=frozenset({1})))
        await trio.sleep(0.2)
        assert (await client.wait_for(lambda e: e.id == event.id, 5)) == event
        with pytest.raises(NoAnswer):
            await client.wait_for(lambda e: e.kind == 2, 0.1)
