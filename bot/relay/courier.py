"""One visit to one relay: bring it an event, ask it for events, or send a request and wait for the reply.

No lasting connection, no key of ours. Strangers name such relays (zappers, images, services), so callers pass
`resolve_public`, and None only for relays of the operator's own. They learn nothing but what they are told.
What they send is bounded in size, number and time, checked for id and signature, and must be what was asked for.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from math import inf

import httpcore
import trio

from bot.relay.websocket import FindAddress, Websocket, WebsocketGone, connect
from nips import nip01
from nips.errors import BadInput, BadMessage
from nips.event import Event, VerifiedEvent, verify_event
from nips.filters import Filter
from nips.relay_url import parse_relay_url_untrusted

TOTAL_S = 15
FETCH_S = 5
REPEAT_S = 1.5
MAX_MESSAGE_BYTES, MAX_QUEUED_BYTES = 1 << 18, 1 << 20
MAX_EVENTS = 500
_UNREACHABLE = (BadInput, WebsocketGone, httpcore.ConnectError)
Messages = AsyncGenerator[nip01.RelayMessage, None]


async def bring(event: VerifiedEvent, url: str, *, find_address: FindAddress | None) -> bool:
    """Whether the relay took it. False for anything else; never raises for what the relay does."""
    try:
        with trio.move_on_after(TOTAL_S):
            async with _visit(url, find_address) as (websocket, messages):
                websocket.send(nip01.encode_publish(event))
                async for message in messages:
                    if isinstance(message, nip01.OkMessage) and message.event_id == event.id:
                        return message.arrived
    except* _UNREACHABLE:
        pass
    return False


async def fetch(
    url: str,
    filters: Sequence[Filter],
    *,
    find_address: FindAddress | None,
    within_s: float = FETCH_S,
) -> tuple[list[VerifiedEvent], bool]:
    """What the relay has stored for these filters, and whether it said that this is all."""
    found: dict[str, VerifiedEvent] = {}
    try:
        with trio.move_on_after(within_s):
            async with _visit(url, find_address) as (websocket, messages):
                websocket.send(nip01.encode_req("fetch", filters))
                async for message in messages:
                    match message:
                        case nip01.EventMessage(_, event) if event.id not in found:
                            wanted = _wanted(event, filters)
                            if wanted is not None:
                                found[event.id] = wanted
                        case nip01.EoseMessage():
                            return list(found.values()), True
                        case nip01.ClosedMessage():
                            break
                        case _:
                            pass
                    if len(found) >= MAX_EVENTS:
                        break
    except* _UNREACHABLE:
        pass
    # Late, cut off or flooded, it is still worth what it said before.
    return list(found.values()), False


async def ask(
    url: str,
    request: VerifiedEvent,
    answers: Filter,
    is_reply: Callable[[VerifiedEvent], bool],
    *,
    find_address: FindAddress | None,
    within_s: float = TOTAL_S,
    repeat_s: float | None = REPEAT_S,
) -> VerifiedEvent | None:
    """Publish a request and wait for its reply (ephemeral kinds); None when none comes in time.

    ``repeat_s``: how often it is said again, None for once.
    """
    try:
        with trio.move_on_after(within_s):
            async with _visit(url, find_address) as (websocket, messages):
                websocket.send(nip01.encode_req("ask", [answers]))
                async with trio.open_nursery() as nursery:
                    # A reply to a request before the subscription stands would be lost.
                    async for message in messages:
                        match message:
                            case nip01.EoseMessage():
                                nursery.start_soon(_repeat, websocket, request, repeat_s)
                            case nip01.EventMessage(_, event):
                                wanted = _wanted(event, [answers])
                                if wanted is not None and is_reply(wanted):
                                    nursery.cancel_scope.cancel()
                                    return wanted
                            case _:
                                pass
                    nursery.cancel_scope.cancel()
    except* _UNREACHABLE:
        pass
    return None


async def _repeat(websocket: Websocket, request: VerifiedEvent, every_s: float | None) -> None:
    """Ephemeral events reach only who listens at that moment: a service that just restarted does not."""
    while True:
        websocket.send(nip01.encode_publish(request))
        await trio.sleep(inf if every_s is None else every_s)


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


def _wanted(event: Event, filters: Sequence[Filter]) -> VerifiedEvent | None:
    if not any(wanted.matches(event) for wanted in filters):
        return None
    try:
        return verify_event(event)
    except BadInput:
        return None
