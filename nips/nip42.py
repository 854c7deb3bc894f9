"""NIP-42: a client proves to a relay which key it holds."""

from nips import kinds
from nips.errors import BadEvent
from nips.event import Event, VerifiedEvent, sign_event, verify_event
from nips.keys import SecretKey
from nips.relay_url import normal_url

MAX_AGE_S = 600


def answer(key: SecretKey, relay_url: str, challenge: str, now: int) -> VerifiedEvent:
    """The client's signed answer to a challenge."""
    return sign_event(
        key, kinds.CLIENT_AUTH, "", [("relay", relay_url), ("challenge", challenge)], now
    )


def verify_answer(event: Event, relay_urls: frozenset[str], challenge: str, now: int) -> str:
    """The pubkey that is proven. Raises `BadEvent` with what is wrong."""
    if event.kind != kinds.CLIENT_AUTH:
        raise BadEvent("not an event of kind 22242")
    if abs(event.created_at - now) > MAX_AGE_S:
        raise BadEvent("created_at is more than ten minutes off")
    if event.tag("challenge") != challenge:
        raise BadEvent("not the challenge of this connection")
    # However it is spelt: clients normalise, and each in its own way.
    if normal_url(event.tag("relay") or "") not in map(normal_url, relay_urls):
        raise BadEvent("meant for another relay")
    verify_event(event)
    return event.pubkey
