"""From events to answers: what reaches us on any relay is queued, admitted, answered, published."""

from collections.abc import Callable

import structlog
import trio

from bot.server.doors import mention, rpc
from bot.server.inbox import Verdict
from bot.server.parts import App
from handlers.domain.lifecycle import State
from nips import kinds
from nips.event import Event
from nips.filters import Filter
from nips.mention import is_mention

log = structlog.get_logger()
MAX_REQUESTS_AT_ONCE = 256
SERVED_EVERY_S = 5
Waiting = trio.MemoryReceiveChannel[tuple[Event, bool]]


def subscribe(app: App) -> None:
    us = {"p": frozenset({app.ctx.key.pubkey})}
    now, inbox = app.ctx.clock.now(), app.config.inbox
    app.pool.subscribe(
        "rpc", [Filter(kinds=frozenset({kinds.RPC}), tags=us, since=now - inbox.rpc_window_s)]
    )
    app.pool.subscribe(
        "notes", [Filter(kinds=frozenset({kinds.NOTE}), tags=us, since=now - inbox.note_window_s)]
    )
    for url in app.config.relays.urls:
        app.pool.add(url)


def feed(app: App, send: trio.MemorySendChannel[tuple[Event, bool]]) -> Callable[[Event], None]:
    def listener(event: Event) -> None:
        if _concerns_us(app, event):
            try:
                send.send_nowait((event, True))
            except trio.WouldBlock:
                log.warning("request refused: the queue is full", event_id=event.id)

    return listener


async def catch_up(app: App, listener: Callable[[Event], None]) -> None:
    """Notes that reached the embedded relay before we were awake; what was acted on is known."""
    if app.relay is not None:
        since = app.ctx.clock.now() - app.config.inbox.note_window_s
        us = {"p": frozenset({app.ctx.key.pubkey})}
        notes = Filter(kinds=frozenset({kinds.NOTE}), tags=us, since=since)
        for event in await app.relay.query([notes]):
            listener(event)


async def run_served(app: App) -> None:
    """The embedded relay keeps what is by and to our containers, as they come and go."""
    living = [State.WAITING, State.DEPLOYED, State.PAUSED]
    while app.relay is not None:
        try:
            rows = await app.ctx.store.read(lambda tx: tx.containers(living))
            await app.relay.serve_for("containers", [row.pubkey for row in rows])
        except Exception:
            log.exception("loop failed", loop="served")
        await trio.sleep(SERVED_EVERY_S)


def _concerns_us(app: App, event: Event) -> bool:
    pubkey = app.ctx.key.pubkey
    if event.kind == kinds.RPC:
        return pubkey in event.tag_values("p")
    return event.kind == kinds.NOTE and is_mention(event, pubkey)


async def run_pump(app: App, send: trio.MemorySendChannel[tuple[Event, bool]]) -> None:
    while True:
        heard = await app.pool.receive()
        await send.send((heard.event, False))


async def run_requests(app: App, receive: Waiting) -> None:
    limiter = trio.CapacityLimiter(MAX_REQUESTS_AT_ONCE)
    async with trio.open_nursery() as nursery:
        async for first in receive:
            # All that wait are taken at once: they share turns of the loop, commits and writes.
            for event, verified in [first, *_waiting_now(receive)]:
                # Taken here, given back by the task: when all are busy, the queue fills, then relays wait.
                place = object()
                try:
                    limiter.acquire_on_behalf_of_nowait(place)
                except trio.WouldBlock:
                    await limiter.acquire_on_behalf_of(place)
                nursery.start_soon(_request, app, event, verified, limiter, place)


def _waiting_now(receive: Waiting) -> list[tuple[Event, bool]]:
    waiting: list[tuple[Event, bool]] = []
    try:
        while len(waiting) < MAX_REQUESTS_AT_ONCE:
            waiting.append(receive.receive_nowait())
    except (trio.WouldBlock, trio.EndOfChannel):
        pass
    return waiting


async def _request(
    app: App,
    event: Event,
    verified: bool,
    limiter: trio.CapacityLimiter,
    place: object,
) -> None:
    try:
        await _answer(app, event, verified=verified)
    except Exception:
        log.exception("request failed", event_id=event.id)
    finally:
        limiter.release_on_behalf_of(place)


async def _answer(app: App, event: Event, *, verified: bool) -> None:
    # Notes that hold no command are nobody's business; they must not use up anybody's rate.
    if event.kind == kinds.NOTE and not mention.is_command(app.ctx, event):
        return
    verdict = await app.inbox.admit(event, app.ctx.clock.now(), verified=verified)
    if verdict is Verdict.IGNORE:
        return
    door = mention if event.kind == kinds.NOTE else rpc
    reply = await door.answer(app.ctx, event, rate_limited=verdict is Verdict.RATE_LIMITED)
    if reply is not None:
        if event.kind == kinds.NOTE:
            app.inbox.count_reply(event)
        await app.outlet.reply(reply)
