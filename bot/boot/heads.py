"""The anchored head, told on relays as well: an event of the service key, which replaces the one before.

Escrow decides; relays only warn. That they know of no newer head proves nothing, for any of them may be hidden from us. That
one knows of a newer head, signed by us, proves that escrow, or what we see of it, has lost it: then we must not go on.
"""

from collections.abc import Iterable

import orjson

from keycrux_client.shares import Head
from nips import kinds
from nips.event import VerifiedEvent, sign_event
from nips.filters import Filter
from nips.keys import SecretKey

NAME = "enclaved-head"


def build_head_event(key: SecretKey, head: Head, now: int) -> VerifiedEvent:
    """NIP-78: ``{"epoch", "number", "digest"}``. A digest of sealed bytes tells nobody anything."""
    content = orjson.dumps(
        {"epoch": head.epoch, "number": head.number, "digest": head.digest}
    ).decode()
    return sign_event(key, kinds.APP_DATA, content, [("d", NAME)], now)


def heads_of(pubkey: str) -> Filter:
    return Filter(
        kinds=frozenset({kinds.APP_DATA}),
        authors=frozenset({pubkey}),
        tags={"d": frozenset({NAME})},
    )


def newest_head(events: Iterable[VerifiedEvent], pubkey: str) -> Head | None:
    """By what they say, not by when they were signed: one that was overtaken may go on telling for a while."""
    found = [head for event in events if (head := _head(event, pubkey)) is not None]
    return max(found, key=lambda head: (head.epoch, head.number), default=None)


def _head(event: VerifiedEvent, pubkey: str) -> Head | None:
    if event.pubkey != pubkey or event.kind != kinds.APP_DATA:
        return None
    try:
        told = orjson.loads(event.content)
    except orjson.JSONDecodeError:
        return None
    match told:
        case {"epoch": int(epoch), "number": int(number), "digest": str(digest)}:
            return Head(epoch, number, digest)
        case _:
            return None
