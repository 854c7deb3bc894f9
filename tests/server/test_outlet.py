"""Where events go out: our own relays, and those that strangers name."""

from bot.clock import SystemClock
from bot.relay.pool import RelayPool
from bot.server.outlet import Outlet
from nips.filters import Filter
from tests.relay.conftest import note, pool, relay


async def test_strangers_relays_get_the_event_and_nothing_else(monkeypatch):
    import bot.server.outlet

    async def anywhere(host, port):
        return host

    async with relay() as (server, url):
        client = RelayPool(SystemClock())
        outlet = Outlet(client, None, ())
        assert [url] == list(await outlet.deliver(note(), [url])), (
            "a private address is not dialled"
        )
        monkeypatch.setattr(bot.server.outlet, "resolve_public", anywhere)
        event = note(content="receipt")
        assert {} == await outlet.deliver(event, [url])
        assert [event.id] == [e.id for e in await server.query([Filter()])]
        assert frozenset() == client.urls, "it did not become one of ours"
        assert {"ws://a..b", "http://x"} == set(
            await outlet.deliver(event, ["ws://a..b", "http://x"])
        )


async def test_our_relays_are_ours_however_they_are_spelt():
    """A configured ``ws://…/`` was connected, and never brought an announcement."""
    async with relay() as (server, url), pool(f"{url}/") as client:
        outlet = Outlet(client, None, ())
        event = note(content="announcement")

        assert outlet.is_ours(url)
        assert outlet.is_ours(url.upper())
        assert not outlet.is_ours("wss://elsewhere.example")
        assert await outlet.deliver(event, [url, f"{url}/"]) == {}
        assert [event.id] == [e.id for e in await server.query([Filter()])]


async def test_the_embedded_relay_is_known_by_any_spelling():
    async with relay() as (server, _):
        outlet = Outlet(RelayPool(SystemClock()), server, ["wss://Ours.Example:443/"])
        event = note(content="announcement")

        assert await outlet.deliver(event, ["wss://ours.example"]) == {}
        assert [event.id] == [e.id for e in await server.query([Filter()])]


async def test_what_is_missing_comes_with_a_reason():
    dead = "ws://127.0.0.1:1"
    async with pool() as client:
        client.add(dead)
        outlet = Outlet(client, None, ())

        assert await outlet.deliver(note(), [dead]) == {dead: "not connected"}
