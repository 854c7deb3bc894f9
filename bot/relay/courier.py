"""Brings one event to one stranger's relay, once: no subscription, no key, no lasting connection.

Such relays are named by zappers. They are dialled only at public addresses, and they learn nothing
but the event.
"""

from contextlib import aclosing

import httpcore
import trio

from bot.adapters.guarded_network import resolve_public
from bot.relay.websocket import WebsocketGone, connect
from nips import nip01
from nips.errors import BadInput, BadMessage
from nips.event import Event
from nips.relay_url import parse_relay_url_untrusted

TOTAL_S = 15
MAX_MESSAGE_BYTES = 65_536


async def bring(event: Event, url: str) -> bool:
    """Whether the relay took it. False for anything else; never raises for what the relay does."""
    try:
        checked = parse_relay_url_untrusted(url)
        with trio.move_on_after(TOTAL_S):
            return await _bring(event, checked)
    except (BadInput, WebsocketGone, httpcore.ConnectError):
        pass
    return False


async def _bring(event: Event, url: str) -> bool:
    took = False
    async with (
        connect(
            url,
            max_message_bytes=MAX_MESSAGE_BYTES,
            max_queued_bytes=1 << 20,
            find_address=resolve_public,
        ) as websocket,
        trio.open_nursery() as nursery,
        aclosing(websocket.messages()) as messages,
    ):
        nursery.start_soon(websocket.run_writer)
        websocket.send(nip01.encode_publish(event))
        async for frame in messages:
            try:
                message = nip01.decode_relay_untrusted(frame)
            except BadMessage:
                continue
            if isinstance(message, nip01.OkMessage) and message.event_id == event.id:
                took = message.accepted
                break
        nursery.cancel_scope.cancel()
    return took
