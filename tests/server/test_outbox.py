"""What is queued is published, whatever the relays do."""

from contextlib import asynccontextmanager

import structlog
import trio
import trio.testing

from bot.server.outbox import STRANGERS_TRIES, TRIES, Outbox, Strangers
from bot.server.outlet import Outlet
from handlers.domain.ledger import container_account
from handlers.invoicing import to_record
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip17 import unwrap_message_untrusted
from tests.relay.conftest import eventually, note, pool, relay

DEAD = "ws://127.0.0.1:1"


class Relays:
    """An outlet on which relays are ours or strangers', and take events, refuse them, or never answer."""

    def __init__(self, ours=(), refusing=(), hanging=()):
        self.ours, self.refusing, self.hanging = set(ours), set(refusing), set(hanging)
        self.has, self.visits, self.at_once, self.most_at_once = [], [], 0, 0
        self.time_out = trio.Event()

    def is_ours(self, url):
        return url in self.ours

    async def deliver(self, event, urls):
        missing = {}
        for url in urls:
            self.visits.append(url)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                if url in self.hanging:
                    await self.time_out.wait()
                if url in self.refusing | self.hanging:
                    missing[url] = "no"
                else:
                    self.has.append((event.content, url))
            finally:
                self.at_once -= 1
        return missing


@asynccontextmanager
async def outbox(world, outlet, **bounds):
    async with trio.open_nursery() as nursery:
        yield Outbox(world.ctx, outlet, Strangers(outlet, nursery, **bounds))
        nursery.cancel_scope.cancel()


async def queue(world, content, urls):
    event = note(content=content)
    await world.store.write(lambda tx: tx.outbox.post(event, world.clock.now(), urls))


async def queued(world):
    items = await world.store.read(lambda tx: tx.outbox.list_due(world.clock.now() + 700, 1_000))
    return [item.relay_urls for item in items]


async def test_what_is_queued_is_published_until_every_relay_has_it(world):
    async with relay() as (server, url), pool(url) as client:
        client.add(DEAD)
        await trio.sleep(0.1)
        await queue(world, "queued", [url, DEAD])
        async with outbox(world, Outlet(client, None, ())) as box:
            assert await box.drain() == 1
            assert ["queued"] == [e.content for e in server.query([Filter()])]
            world.clock.advance(5)
            assert await queued(world) == [(DEAD,)]
            for _ in range(TRIES):
                world.clock.advance(600)
                await box.drain()
            assert await queued(world) == [], "given up at last"


async def test_a_clock_that_jumps_ahead_gives_nothing_up(world):
    relays = Relays(ours=["ours"], refusing=["ours"])
    await queue(world, "x", ["ours"])
    async with outbox(world, relays) as box:
        for _ in range(3):
            world.clock.advance(86_400)
            await box.drain()

    assert await queued(world) == [("ours",)]


async def later(world, box, relays, seconds=600):
    """Time goes by, the next round is made, and every errand that was begun ends."""
    world.clock.advance(seconds)
    await box.drain()
    await trio.testing.wait_all_tasks_blocked()
    await eventually(lambda: relays.at_once == 0)


async def test_dead_relays_of_strangers_do_not_delay_our_own(world):
    """100 zaps, each naming a dead relay, and then an announcement of ours."""
    dead = [f"wss://dead{n}.example" for n in range(100)]
    relays = Relays(ours=["ours"], hanging=dead)
    for url in dead:
        await queue(world, "receipt", ["ours", url])
    async with outbox(world, relays) as box:
        with trio.fail_after(10):
            assert await box.drain() == 100
            await queue(world, "announcement", ["ours"])
            assert await box.drain() == 1

        assert len(relays.has) == 101
        assert relays.has[-1] == ("announcement", "ours")
        assert relays.most_at_once in (16, 17), "16 at strangers', and ours one by one"
        relays.time_out.set()
        for _ in range(STRANGERS_TRIES):
            await later(world, box, relays)
        assert await queued(world) == [], "given up"
        tries = [relays.visits.count(url) for url in dead]
        assert (2 <= min(tries), max(tries) <= STRANGERS_TRIES) == (True, True)


async def test_a_strangers_relay_that_works_gets_it_among_dead_ones(world):
    dead = [f"wss://dead{n}.example" for n in range(20)]
    relays = Relays(ours=["ours"], hanging=dead)
    await queue(world, "receipt", ["ours", *dead, "wss://good.example"])
    async with outbox(world, relays) as box:
        await box.drain()
        relays.time_out.set()
        await eventually(lambda: ("receipt", "wss://good.example") in relays.has)
        await later(world, box, relays)

        assert relays.visits.count("wss://good.example") == 1, "once it has it, it is left alone"
        assert await queued(world) == [tuple(dead)]


async def test_one_host_gets_its_share_of_places_only(world):
    many = [f"wss://one.example/{n}" for n in range(20)]
    relays = Relays(hanging=many)
    for url in [*many, "wss://other.example"]:
        await queue(world, "receipt", [url])
    async with outbox(world, relays, at_once=8, most_per_host=4) as box:
        await box.drain()
        await eventually(lambda: len(relays.visits) == 5)
        assert "wss://other.example" in relays.visits
        relays.time_out.set()
        await eventually(lambda: relays.at_once == 0)
        await later(world, box, relays)

        assert len(relays.visits) == 9, "the places are given back"


async def test_places_in_all_are_bounded(world):
    dead = [f"wss://dead{n}.example" for n in range(50)]
    relays = Relays(hanging=dead)
    await queue(world, "receipt", dead)
    async with outbox(world, relays, at_once=4, most_waiting=10) as box:
        await box.drain()
        await eventually(lambda: len(relays.visits) == 4)
        relays.time_out.set()
        await eventually(lambda: len(relays.visits) == 10)
        await eventually(lambda: relays.at_once == 0)

    assert (len(relays.visits), relays.most_at_once) == (10, 4)


async def test_one_items_surprise_does_not_hold_up_the_others(world):
    relays = Relays(ours=["ours"])
    await queue(world, "breaks", ["ours"])
    await queue(world, "fine", ["ours"])
    deliver = relays.deliver

    async def surprising(event, urls):
        if event.content == "breaks":
            raise RuntimeError("boom")
        return await deliver(event, urls)

    relays.deliver = surprising
    with structlog.testing.capture_logs() as lines:
        async with outbox(world, relays) as box:
            await box.drain()

    assert [("fine", "ours")] == relays.has
    assert ["outbox item failed"] == [line["event"] for line in lines]
    assert await queued(world) == [("ours",)]


async def test_the_lane_survives_a_surprise(world):
    relays = Relays()

    async def surprising(event, urls):
        relays.visits += urls
        if urls:
            raise RuntimeError("boom")
        return {}

    relays.deliver = surprising
    await queue(world, "x", ["wss://one.example", "wss://two.example"])
    with structlog.testing.capture_logs():
        async with outbox(world, relays) as box:
            await box.drain()
            await eventually(lambda: len(relays.visits) == 2)
            world.clock.advance(10)
            await box.drain()
            await eventually(lambda: len(relays.visits) == 4)


class Keeping(Relays):
    async def deliver(self, event, urls):
        missing = await super().deliver(event, urls)
        self.events = [*getattr(self, "events", []), event]
        return missing


async def test_a_message_is_sealed_when_it_is_sent_and_stays_the_same_event(world):
    admin, ours = SecretKey.generate(), world.ctx.presence.relay_urls[0]
    relays = Keeping(ours=[ours], refusing=[ours])
    await world.store.write(lambda tx: tx.outbox.tell(admin.pubkey, "hello", world.clock.now()))
    async with outbox(world, relays) as box:
        await box.drain()
        world.clock.advance(10)
        await box.drain()

    assert relays.events[0].id == relays.events[1].id
    assert ("hello", world.ctx.key.pubkey) == unwrap_message_untrusted(admin, relays.events[0])[
        1::-1
    ]


async def test_a_receipt_that_cannot_be_made_is_let_go_and_the_money_is_credited(world):
    """A zap request that no longer parses: the credit does not depend on it."""
    pubkey = await world.deployed()
    minted = world.wallet.mint("wallet:main", 9_000, None, 600)
    invoice = to_record(minted, pubkey, "wallet:main", world.clock.now(), "no zap request")
    await world.store.write(lambda tx: tx.invoices.add(invoice))
    world.wallet.settle(minted.payment_hash)
    await world.turn()
    relays = Keeping(ours=[*world.ctx.presence.relay_urls])
    async with outbox(world, relays) as box:
        await box.drain()

    assert 14_000 == await world.balance(container_account(pubkey))
    assert 9735 not in [event.kind for event in relays.events]
    assert [] == await queued(world)


async def test_a_newer_announcement_takes_the_place_of_one_that_was_not_sent(world):
    for content in ("old", "new"):
        event = note(content=content)
        await world.store.write(
            lambda tx, e=event: tx.outbox.post(
                e, world.clock.now(), ["ours"], subject="container:x"
            )
        )
    relays = Relays(ours=["ours"])
    async with outbox(world, relays) as box:
        await box.drain()

    assert [("new", "ours")] == relays.has
