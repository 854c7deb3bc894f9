"""NIP-57 zaps: what an LNURL server checks before it invoices, and the receipt it signs afterwards.

A receipt is a claim, never a credit: balances rise only by what the wallet says.
"""

import hashlib
from dataclasses import dataclass

from nips import kinds
from nips.errors import BadInput, BadRequest
from nips.event import (
    Event,
    Tag,
    VerifiedEvent,
    parse_event_json_untrusted,
    sign_event,
    verify_event,
)
from nips.keys import SecretKey
from nips.relay_url import BadRelayUrl, parse_relay_url_untrusted

MAX_REQUEST = 8_192
MAX_RELAYS = 10


@dataclass(frozen=True)
class ZapRequest:
    """A checked zap request. ``raw`` is kept byte for byte: the invoice commits to its hash."""

    event: Event
    raw: str
    relay_urls: tuple[str, ...]

    @property
    def description_hash(self) -> str:
        """SHA-256 of the request as it was sent, in hex."""
        return hashlib.sha256(self.raw.encode()).hexdigest()


def parse_zap_request_untrusted(raw: str, *, recipient: str, amount_msat: int) -> ZapRequest:
    """All checks of NIP-57 appendix D. Raises `BadRequest` with the one that failed."""
    if len(raw.encode(errors="replace")) > MAX_REQUEST:
        raise BadRequest("the zap request is too long")
    try:
        event = parse_event_json_untrusted(raw)
        verify_event(event)
    except BadInput as error:
        raise BadRequest(f"the zap request is not a valid event: {error}") from error
    if event.kind != kinds.ZAP_REQUEST:
        raise BadRequest("a zap request has kind 9734")
    if event.tag_values("p") != [recipient]:
        raise BadRequest("a zap request has exactly one p tag, the recipient's")
    if len(event.tag_values("e")) > 1 or len(event.tag_values("P")) > 1:
        raise BadRequest("a zap request has at most one e tag and one P tag")
    amount = event.tag("amount")
    if amount is not None and amount != str(amount_msat):
        raise BadRequest("the amount tag differs from the amount that is asked for")
    coordinate = event.tag("a")
    if coordinate is not None and not _is_coordinate(coordinate):
        raise BadRequest("the a tag is not kind:pubkey:identifier")
    relays = next((t[1:] for t in event.tags if t[0] == "relays"), ())
    if not relays:
        raise BadRequest("a zap request names relays for the receipt")
    try:
        urls = tuple(parse_relay_url_untrusted(url) for url in relays[:MAX_RELAYS])
    except BadRelayUrl as error:
        raise BadRequest(str(error)) from error
    return ZapRequest(event, raw, urls)


def build_zap_receipt(
    key: SecretKey, request: ZapRequest, *, bolt11: str, preimage: str | None, paid_at: int
) -> VerifiedEvent:
    """The 9735 event, signed by the LNURL provider's key."""
    tags: list[Tag] = [t for t in request.event.tags if t[0] in ("p", "e", "a", "k")]
    tags += [("P", request.event.pubkey), ("bolt11", bolt11), ("description", request.raw)]
    if preimage:
        tags.append(("preimage", preimage))
    return sign_event(key, kinds.ZAP_RECEIPT, "", tags, paid_at)


def _is_coordinate(text: str) -> bool:
    kind, _, rest = text.partition(":")
    pubkey, colon, _identifier = rest.partition(":")
    return kind.isdecimal() and bool(colon) and len(pubkey) == 64
