"""The server tells its relay whom to serve: containers as they come and go, escrow that it believes."""

from types import SimpleNamespace

from bot.adapters.relay_events import RelayEvents
from bot.server.loops import serve_containers
from nips import kinds
from nips.filters import Filter
from nips.keys import SecretKey
from tests.relay.conftest import eventually, note, relay
from tests.relay.test_server import publish, talk


async def test_a_container_is_served_as_long_as_it_lives(world):
    async with relay(is_open=False) as (server, url), talk(url) as raw:
        app = SimpleNamespace(relay=server)
        pubkey = await world.deployed()
        to_it = [("p", pubkey)]

        async def takes():
            return (await publish(raw, note(tags=to_it)))[0]

        assert not await takes()
        await serve_containers(app, world.ctx)
        assert await takes()
        await world.call("stop", pubkey=pubkey, force=True)
        await serve_containers(app, world.ctx)
        assert not await takes()


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
