"""One visit to one relay: bring it an event, ask it for events, or send a request and wait for the reply.

No lasting connection, no key of ours. Strangers name such relays (zappers, images, services), so by default
they are dialled only at public addresses, and they learn nothing but what they are told. What they
send is bounded in size, number and time, checked for id and signature, and must be what was asked for.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

import httpcore
import trio

from bot.adapters.guarded_network import resolve_public
from bot.relay.websocket import FindAddress, Websocket, WebsocketGone, connect
from nips import nip01
from nips.errors import BadInput, BadMessage
from nips.event import Event, verify_event
from nips.filters import Filter
from nips.relay_url import parse_relay_url_untrusted

TOTAL_S = 15
FETCH_S = 5
REPEAT_S = 1.5
MAX_MESSAGE_BYTES, MAX_QUEUED_BYTES = 1 << 18, 1 << 20
MAX_EVENTS = 500
_UNREACHABLE = (BadInput, WebsocketGone, httpcore.ConnectError)
Messages = AsyncGenerator[nip01.RelayMessage, None]


async def bring(
    event: Event, url: str, *, find_address: FindAddress | None = resolve_public
) -> bool:
    """Whether the relay took it. False for anything else; never raises for what the relay does."""
    try:
        with trio.move_on_after(TOTAL_S):
            async with _visit(url, find_address) as (websocket, messages):
                websocket.send(nip01.encode_publish(event))
                async for message in messages:
                    if isinstance(message, nip01.OkMessage) and message.event_id == event.id:
                        return message.accepted
    except* _UNREACHABLE:
        pass
    return False


async def fetch(
    url: str,
    filters: Sequence[Filter],
    *,
    find_address: FindAddress | None = resolve_public,
    within_s: float = FETCH_S,
) -> list[Event] | None:
    """What the relay has stored for these filters, or None when it cannot be asked."""
    found: dict[str, Event] = {}
    try:
        with trio.fail_after(within_s):
            async with _visit(url, find_address) as (websocket, messages):
                websocket.send(nip01.encode_req("fetch", filters))
                async for message in messages:
                    match message:
                        case nip01.EventMessage(_, event) if _is_wanted(event, filters):
                            found[event.id] = event
                        case nip01.EoseMessage() | nip01.ClosedMessage():
                            return list(found.values())
                        case _:
                            pass
                    if len(found) >= MAX_EVENTS:
                        return list(found.values())
    except* (*_UNREACHABLE, trio.TooSlowError):
        pass
    # Late or cut off, it is still worth what it said before.
    return list(found.values()) or None


async def ask(
    url: str,
    request: Event,
    answers: Filter,
    is_reply: Callable[[Event], bool],
    *,
    find_address: FindAddress | None = resolve_public,
    within_s: float = TOTAL_S,
) -> Event | None:
    """Publish a request and wait for its reply (ephemeral kinds); None when none comes in time."""
    try:
        with trio.move_on_after(within_s):
            async with _visit(url, find_address) as (websocket, messages):
                websocket.send(nip01.encode_req("ask", [answers]))
                async with trio.open_nursery() as nursery:
                    # A reply to a request before the subscription stands would be lost.
                    async for message in messages:
                        match message:
                            case nip01.EoseMessage():
                                nursery.start_soon(_repeat, websocket, request)
                            case nip01.EventMessage(_, event):
                                if _is_wanted(event, [answers]) and is_reply(event):
                                    nursery.cancel_scope.cancel()
                                    return event
                            case _:
                                pass
                    nursery.cancel_scope.cancel()
    except* _UNREACHABLE:
        pass
    return None


async def _repeat(websocket: Websocket, request: Event) -> None:
    """Ephemeral events reach only who listens at that moment: a service that just restarted does not."""
    while True:
        websocket.send(nip01.encode_publish(request))
        await trio.sleep(REPEAT_S)


@asynccontextmanager
async def _visit(
    url: str, find_address: FindAddress | None
) -> AsyncIterator[tuple[Websocket, Messages]]:
    checked = parse_relay_url_untrusted(url)
    async with (
        connect(
            checked,
            max_message_bytes=MAX_MESSAGE_BYTES,
            max_queued_bytes=MAX_QUEUED_BYTES,
            find_address=find_address,
        ) as websocket,
        trio.open_nursery() as nursery,
        aclosing(websocket.messages()) as frames,
        aclosing(_decoded(frames)) as messages,
    ):
        nursery.start_soon(websocket.run_writer)
        yield websocket, messages
        nursery.cancel_scope.cancel()


async def _decoded(frames: AsyncIterator[bytes]) -> Messages:
    async for frame in frames:
        try:
            yield nip01.decode_relay_untrusted(frame)
        except BadMessage:
            continue


def _is_wanted(event: Event, filters: Sequence[Filter]) -> bool:
    if not any(wanted.matches(event) for wanted in filters):
        return False
    try:
        verify_event(event)
    except BadInput:
        return False
    return True
