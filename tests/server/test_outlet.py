"""Where events go out: our own relays, and those that strangers name."""

from bot.clock import SystemClock
from bot.relay.pool import RelayPool
from bot.server.outlet import Outlet
from nips.filters import Filter
from tests.relay.conftest import note, relay


async def test_strangers_relays_get_the_event_and_nothing_else(monkeypatch):
    import bot.server.outlet

    async def anywhere(host, port):
        return host

    async with relay() as (server, url):
        client = RelayPool(SystemClock())
        outlet = Outlet(client, None, ())
        assert [url] == await outlet.deliver(note(), [url]), "a private address is not dialled"
        monkeypatch.setattr(bot.server.outlet, "resolve_public", anywhere)
        event = note(content="receipt")
        assert [] == await outlet.deliver(event, [url])
        assert [event.id] == [e.id for e in server.query([Filter()])]
        assert frozenset() == client.urls, "it did not become one of ours"
        assert {"ws://a..b", "http://x"} == set(
            await outlet.deliver(event, ["ws://a..b", "http://x"])
        )
