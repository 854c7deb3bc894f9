"""The server tells its relay whom to serve: containers as they come and go, escrow that it believes."""

from types import SimpleNamespace

import trio

from bot.adapters.relay_events import RelayEvents
from bot.server.intake import run_served
from nips import kinds
from nips.filters import Filter
from nips.keys import SecretKey
from tests.relay.conftest import eventually, note, relay
from tests.relay.test_server import publish, talk


async def test_a_container_is_served_as_long_as_it_lives(world, monkeypatch):
    monkeypatch.setattr("bot.server.intake.SERVED_EVERY_S", 0.02)
    async with relay(is_open=False) as (server, url), talk(url) as raw:
        pubkey = await world.deployed()
        to_it = [("p", pubkey)]

        async def takes():
            return (await publish(raw, note(tags=to_it)))[0]

        assert not await takes()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_served, SimpleNamespace(ctx=world.ctx, relay=server))
            await until(takes, True)
            await world.call("stop", pubkey=pubkey, force=True)
            await until(takes, False)
            nursery.cancel_scope.cancel()


async def until(takes, wanted):
    with trio.fail_after(5):
        while await takes() is not wanted:
            await trio.sleep(0.02)


async def test_escrow_that_is_believed_is_served(tmp_path):
    service = SecretKey.generate()
    async with relay(is_open=False) as (server, url), talk(url) as raw:
        events = RelayEvents([url], server, [url + "/"])
        announcement = note(service, kind=kinds.ANNOUNCEMENT)
        assert not (await publish(raw, announcement))[0]
        await events.believe([service.pubkey])
        assert await publish(raw, announcement) == [True, ""]
        # Found without a socket, however the relay is spelt.
        wanted = [Filter(kinds=frozenset({kinds.ANNOUNCEMENT}))]
        found = await events.search(wanted, [url.replace("ws://", "WS://") + "/"])
        assert ((announcement,), ()) == (found.events, found.silent)
        await raw.say("REQ", "s", {"kinds": [kinds.KEYCRUX_RPC], "limit": 0})
        request = note(kind=kinds.KEYCRUX_RPC, tags=[("p", service.pubkey)])
        raw.ws.send(b'["EVENT",' + request.json + b"]")
        heard = [await raw.hear() for _ in range(2)]
        assert {"OK", "EVENT"} == {message[0] for message in heard}
    await eventually(lambda: server.load().connections == 0)
