"""Clocks that are wrong, theirs and ours: who asks is told, nothing is acted on twice, nobody goes deaf."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio

import bot.tools.client
from bot.adapters.seen_store import SeenStore
from bot.clock import SystemClock
from bot.relay.pool import RelayPool
from bot.relay.server import RelayServer
from bot.server import intake
from bot.server.inbox import Inbox, InboxPolicy
from bot.server.outlet import Outlet
from bot.tools.client import CallRefused, open_client
from nips import kinds
from nips.event import sign_event, verify_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.rpc import RpcRequest, build_request, open_reply_untrusted
from tests.relay.conftest import QUICK, pool, relay


@asynccontextmanager
async def instance(world, tmp_path, url=None):
    """What listens and answers, on ``url``, or on an embedded relay; gives the URL to reach it by."""
    clock, policy = world.clock, InboxPolicy()
    clock.unix = SystemClock().now()
    us = world.ctx.key.pubkey
    server = RelayServer(clock, name="t", pubkey=us, is_open=True) if url is None else None
    seen, refused = (SeenStore(tmp_path / f"{n}.sqlite", clock) for n in ("seen", "refused"))
    outer = RelayPool(clock, policy=QUICK)
    urls = () if url is None else (url,)
    config = SimpleNamespace(inbox=policy, relays=SimpleNamespace(urls=urls))
    app = SimpleNamespace(
        ctx=world.ctx, config=config, relay=server, pool=outer, seen=seen, refused=refused,
        inbox=Inbox(us, seen, refused, policy), outlet=Outlet(outer, server, ()),
    )  # fmt: skip
    send, receive = trio.open_memory_channel(4_096)
    async with trio.open_nursery() as nursery:
        if server is not None:
            server.listen(intake.feed(app, send))
            port = await nursery.start(server.serve, "127.0.0.1", 0)
            url = f"ws://127.0.0.1:{port}"
        intake.subscribe(app)
        nursery.start_soon(outer.run)
        nursery.start_soon(intake.run_pump, app, send)
        nursery.start_soon(intake.run_requests, app, receive)
        if urls:
            await outer.wait_connected()
            await trio.sleep(0.1)
        yield app, url
        nursery.cancel_scope.cancel()
    seen.close()
    refused.close()


class Caller:
    """Sends requests with whatever date, and hears what is answered to them."""

    def __init__(self, us, client):
        self.us, self.client, self.key = us, client, SecretKey.generate()
        tags = {"p": frozenset({self.key.pubkey})}
        client.subscribe("replies", [Filter(kinds=frozenset({kinds.RPC}), tags=tags)])

    def request(self, at, **tags):
        request = RpcRequest("7", "ping", {})
        plain = build_request(self.key, kinds.RPC, self.us, request, at)
        return sign_event(self.key, plain.kind, plain.content, [*plain.tags, *tags.items()], at)

    async def ask(self, request):
        await self.client.publish(request)
        with trio.fail_after(5):
            reply = (await self.client.receive()).event
        assert ("e", request.id) in reply.tags
        return open_reply_untrusted(self.key, verify_event(reply))

    async def hears_nothing(self):
        with trio.move_on_after(0.3) as scope:
            await self.client.receive()
        return scope.cancelled_caught


@asynccontextmanager
async def calling(world, tmp_path, *, embedded):
    async with (
        relay() as (_, outer),
        instance(world, tmp_path, None if embedded else outer) as (app, url),
        pool(url) as client,
    ):
        caller = Caller(world.ctx.key.pubkey, client)
        await trio.sleep(0.1)
        yield app, caller


@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize(
    ("offset", "where"), [(-300, "behind"), (-80_000, "behind"), (300, "ahead of")]
)
async def test_whose_clock_is_wrong_is_told_both_times_once(
    world, tmp_path, embedded, offset, where
):
    async with calling(world, tmp_path, embedded=embedded) as (_, caller):
        now = world.clock.now()
        request = caller.request(now + offset)
        reply = await caller.ask(request)
        assert reply.rpc_id == "7"
        assert reply.error == (
            f"invalid: the request is dated {now + offset}, {abs(offset)} s {where} our clock, "
            f"which says {now}; 120 s are allowed: set your clock"
        )
        await caller.client.publish(request)
        assert await caller.hears_nothing()
        assert (await caller.ask(caller.request(now))).result == "pong"


async def test_an_expired_request_is_told_both_times(world, tmp_path):
    async with calling(world, tmp_path, embedded=True) as (app, caller):
        now = world.clock.now()
        # The relay refuses what has expired: it comes from one that does not.
        send, receive = trio.open_memory_channel(1)
        request = caller.request(now - 10, expiration=str(now - 5))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intake.run_requests, app, receive)
            await send.send(request)
            with trio.fail_after(5):
                reply = (await caller.client.receive()).event
            nursery.cancel_scope.cancel()
        assert open_reply_untrusted(caller.key, reply).error == (
            f"invalid: the request, dated {now - 10}, expired at {now - 5}; our clock says {now}"
        )


async def test_recorded_requests_of_somebody_cannot_be_used_against_him(world, tmp_path):
    """His requests of the last hour are sent again, all at once: he is answered as before."""
    async with calling(world, tmp_path, embedded=True) as (_, caller):
        now = world.clock.now()
        for n in range(200):
            await caller.client.publish(caller.request(now - 3_600 + n), wait_ok=False)
        await trio.sleep(0.5)
        told = 0
        while not await caller.hears_nothing():
            told += 1
        assert 1 <= told <= 10
        assert (await caller.ask(caller.request(now))).result == "pong"


async def test_the_command_line_hears_the_answer_though_its_clock_is_ahead(
    world, tmp_path, monkeypatch
):
    class Ahead(SystemClock):
        def now(self):
            return super().now() + 300

    monkeypatch.setattr(bot.tools.client, "SystemClock", Ahead)
    async with (
        instance(world, tmp_path) as (_, url),
        open_client(SecretKey.generate(), [url]) as client,
    ):
        with trio.fail_after(10), pytest.raises(CallRefused, match="ahead of our clock"):
            await client.call(world.ctx.key.pubkey, "ping")
