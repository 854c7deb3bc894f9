"""From events to answers: what reaches us on any relay is queued, admitted, answered, published."""

from collections.abc import Callable

import structlog
import trio

from bot.server.doors import mention, rpc
from bot.server.inbox import Admission, InboxPolicy
from bot.server.parts import App
from handlers.errors import Code, Refusal, invalid
from nips import kinds
from nips.event import VerifiedEvent
from nips.filters import Filter
from nips.mention import is_mention

log = structlog.get_logger()
MAX_REQUESTS_AT_ONCE = 256
Waiting = trio.MemoryReceiveChannel[VerifiedEvent]
Listener = Callable[[VerifiedEvent], None]


def subscribe(app: App) -> None:
    us = {"p": frozenset({app.ctx.key.pubkey})}
    inbox = app.config.inbox
    # Whose clock is wrong must be heard, to be told so.
    requests, notes = (
        Filter(kinds=frozenset({kind}), tags=us) for kind in (kinds.RPC, kinds.NOTE)
    )
    app.pool.subscribe("rpc", [requests], back_s=inbox.answer_window_s)
    app.pool.subscribe("notes", [notes], back_s=inbox.note_window_s)
    for url in app.config.relays.urls:
        # The embedded relay among them is heard without a socket.
        if not app.outlet.is_ours(url):
            app.pool.add(url)


def feed(app: App, send: trio.MemorySendChannel[VerifiedEvent]) -> Listener:
    def listener(event: VerifiedEvent) -> None:
        if _concerns_us(app, event):
            try:
                send.send_nowait(event)
            except trio.WouldBlock:
                log.warning("request refused: the queue is full", event_id=event.id)

    return listener


async def catch_up(app: App, listener: Listener) -> None:
    """Notes that reached the embedded relay before we were awake; what was acted on is known."""
    if app.relay is not None:
        since = app.ctx.clock.now() - app.config.inbox.note_window_s
        us = {"p": frozenset({app.ctx.key.pubkey})}
        notes = Filter(kinds=frozenset({kinds.NOTE}), tags=us, since=since)
        for event in await app.relay.query([notes]):
            listener(event)


def _concerns_us(app: App, event: VerifiedEvent) -> bool:
    pubkey = app.ctx.key.pubkey
    if event.kind == kinds.RPC:
        return pubkey in event.tag_values("p")
    return event.kind == kinds.NOTE and is_mention(event, pubkey)


async def run_pump(app: App, send: trio.MemorySendChannel[VerifiedEvent]) -> None:
    while True:
        await send.send((await app.pool.receive()).event)


async def run_requests(app: App, receive: Waiting) -> None:
    limiter = trio.CapacityLimiter(MAX_REQUESTS_AT_ONCE)
    async with trio.open_nursery() as nursery:
        async for first in receive:
            # All that wait are taken at once: they share turns of the loop, commits and writes.
            for event in [first, *_waiting_now(receive)]:
                # Taken here, given back by the task: when all are busy, the queue fills, then relays wait.
                place = object()
                try:
                    limiter.acquire_on_behalf_of_nowait(place)
                except trio.WouldBlock:
                    await limiter.acquire_on_behalf_of(place)
                nursery.start_soon(_request, app, event, limiter, place)


def _waiting_now(receive: Waiting) -> list[VerifiedEvent]:
    waiting: list[VerifiedEvent] = []
    try:
        while len(waiting) < MAX_REQUESTS_AT_ONCE:
            waiting.append(receive.receive_nowait())
    except (trio.WouldBlock, trio.EndOfChannel):
        pass
    return waiting


async def _request(
    app: App, event: VerifiedEvent, limiter: trio.CapacityLimiter, place: object
) -> None:
    try:
        await _answer(app, event)
    except Exception:
        log.exception("request failed", event_id=event.id)
    finally:
        limiter.release_on_behalf_of(place)


async def _answer(app: App, event: VerifiedEvent) -> None:
    # Notes that hold no command are nobody's business; they must not use up anybody's rate.
    if event.kind == kinds.NOTE and not mention.is_command(app.ctx, event):
        return
    now = app.ctx.clock.now()
    admission = await app.inbox.admit(event, now)
    if admission is Admission.IGNORE:
        return
    door = mention if event.kind == kinds.NOTE else rpc
    refusal = why_refused(admission, event, now, app.config.inbox)
    reply = await door.answer(app.ctx, event, refusal)
    if reply is not None:
        if event.kind == kinds.NOTE:
            app.inbox.count_reply(event)
        await app.outlet.reply(reply)


def why_refused(
    admission: Admission, event: VerifiedEvent, now: int, policy: InboxPolicy
) -> Refusal | None:
    """None for what may be acted on. Whose clock is wrong learns of both clocks."""
    match admission:
        case Admission.RATE_LIMITED:
            return Refusal(Code.RATE_LIMITED, "slow down")
        case Admission.MISDATED:
            off_s = abs(now - event.created_at)
            where = "behind" if event.created_at < now else "ahead of"
            return invalid(
                f"the request is dated {event.created_at}, {off_s} s {where} our clock, which says {now}; "
                f"{policy.rpc_window_s} s are allowed: set your clock"
            )
        case Admission.EXPIRED:
            ended = (event.tag("expiration") or "")[:20]
            return invalid(
                f"the request, dated {event.created_at}, expired at {ended}; our clock says {now}"
            )
        case Admission.ACT | Admission.IGNORE:
            return None
