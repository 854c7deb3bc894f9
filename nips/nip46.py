"""NIP-46: asking a remote signer (bunker) to sign, so that a maintainer's key stays where it is."""

from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import orjson

from nips import kinds, nip44
from nips.crypto import is_pubkey
from nips.errors import BadEvent, BadKey, BadRequest
from nips.event import (
    Event,
    Tag,
    VerifiedEvent,
    parse_event_json_untrusted,
    sign_event,
    verify_event,
)
from nips.keys import SecretKey
from nips.relay_url import parse_relay_url_untrusted

MAX_URI = 2_048


@dataclass(frozen=True)
class BunkerUri:
    """``bunker://<signer>?relay=…&secret=…``. The secret lets us connect once; it is never shown."""

    signer: str
    relay_urls: tuple[str, ...]
    secret: str | None = field(repr=False)


@dataclass(frozen=True)
class BunkerReply:
    """The answer to one request. ``auth_url``: the signer's owner must agree there first."""

    request_id: str
    result: str
    error: str | None
    auth_url: str | None


def parse_bunker_uri(text: str) -> BunkerUri:
    """Raises `BadKey` or `BadRelayUrl`, which never repeat the text: its secret lets anybody connect."""
    try:
        parts = urlsplit(text) if len(text) <= MAX_URI else None
        query = parse_qs(parts.query, max_num_fields=16) if parts is not None else {}
    except ValueError:
        parts, query = None, {}
    relay_urls = tuple(query.get("relay", ()))
    if parts is None or parts.scheme != "bunker" or not is_pubkey(parts.netloc) or not relay_urls:
        raise BadKey("a bunker URI is bunker://<pubkey>?relay=wss://…")
    checked = tuple(map(parse_relay_url_untrusted, relay_urls))
    return BunkerUri(parts.netloc, checked, next(iter(query.get("secret", ())), None))


def build_request(
    key: SecretKey, signer: str, request_id: str, method: str, params: list[str], now: int
) -> VerifiedEvent:
    """Our side; ``params`` are strings, as the NIP has it."""
    body = orjson.dumps({"id": request_id, "method": method, "params": params}).decode()
    content = nip44.encrypt(key, signer, body)
    return sign_event(key, kinds.NOSTR_CONNECT, content, [("p", signer)], now)


def open_reply_untrusted(key: SecretKey, event: Event) -> BunkerReply:
    """Raises `BadCiphertext` or `BadRequest`."""
    match _loads(nip44.decrypt_untrusted(key, event.pubkey, event.content)):
        case {"id": str(request_id), "result": "auth_url", "error": str(url)}:
            return BunkerReply(request_id, "", None, url)
        case {"id": str(request_id), "error": str(error)} if error:
            return BunkerReply(request_id, "", error, None)
        case {"id": str(request_id), "result": str(result)}:
            return BunkerReply(request_id, result, None, None)
        case _:
            raise BadRequest("a bunker's reply is {id, result, error}")


def unsigned_event_json(kind: int, content: str, tags: list[Tag], created_at: int) -> str:
    """The parameter of ``sign_event``."""
    template = {"kind": kind, "content": content, "tags": tags, "created_at": created_at}
    return orjson.dumps(template).decode()


def open_signed_untrusted(
    text: str, pubkey: str, kind: int, content: str, tags: list[Tag], created_at: int
) -> VerifiedEvent:
    """The signed event, if it is the one that was asked for. Raises `BadEvent`."""
    event = verify_event(parse_event_json_untrusted(text))
    asked = (pubkey, kind, content, tuple(tags), created_at)
    if asked != (event.pubkey, event.kind, event.content, event.tags, event.created_at):
        raise BadEvent("the bunker signed something else than was asked for")
    return event


def _loads(text: str) -> object:
    try:
        value: object = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest("the message holds no JSON") from error
    return value
