"""What is queued is published, whatever the relays do."""

import trio

from bot.server.outbox import drain
from bot.server.outlet import Outlet
from nips.filters import Filter
from tests.relay.conftest import note, pool, relay


async def test_what_is_queued_is_published_until_every_relay_has_it(world):
    async with relay() as (server, url), pool(url) as client:
        dead = "ws://127.0.0.1:1"
        client.add(dead)
        await trio.sleep(0.1)
        event = note(content="queued")
        await world.store.write(lambda tx: tx.enqueue(event, [url, dead], world.clock.now()))
        outlet = Outlet(client, None, ())
        assert 1 == await drain(world.store, outlet, world.clock)
        assert ["queued"] == [e.content for e in server.query([Filter()])]
        world.clock.advance(5)
        left = await world.store.read(lambda tx: tx.outbox(world.clock.now(), 10))
        assert [(dead,)] == [item.relay_urls for item in left]
        world.clock.advance(7 * 3_600)
        await drain(world.store, outlet, world.clock)
        assert [] == await world.store.read(
            lambda tx: tx.outbox(world.clock.now() + 10_000, 10)
        ), "given up at last"
