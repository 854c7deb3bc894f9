"""The signed event (NIP-01): structure, id, signature, JSON.

`parse_event_untrusted` checks the shape and gives an `Event`, `verify_event` the id and the signature and
gives a `VerifiedEvent`. Only the latter may be acted on, and whatever acts takes that type alone.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Never, final

import orjson

from nips import crypto
from nips.errors import BadEvent
from nips.keys import SecretKey

Tag = tuple[str, ...]
Tags = tuple[Tag, ...]

MAX_TAGS = 2_000
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, eq=False)
class Event:
    """A Nostr event; ``id``, ``pubkey`` and ``sig`` are lower-case hex, ``created_at`` Unix seconds.

    Two are equal when all seven fields are, whether they were verified or not.
    """

    id: str
    pubkey: str
    created_at: int
    kind: int
    tags: Tags
    content: str
    sig: str

    @cached_property
    def json(self) -> bytes:
        """The event as compact JSON, as it travels."""
        return orjson.dumps(self.as_dict())

    def as_dict(self) -> dict[str, object]:
        """The seven fields of NIP-01, ready for JSON."""
        return {
            "id": self.id,
            "pubkey": self.pubkey,
            "created_at": self.created_at,
            "kind": self.kind,
            "tags": self.tags,
            "content": self.content,
            "sig": self.sig,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((self.id, self.sig))

    def tag(self, name: str) -> str | None:
        """The value of the first tag with that name."""
        return next((t[1] for t in self.tags if t[0] == name and len(t) > 1), None)

    def tag_values(self, name: str) -> list[str]:
        """The values of all tags with that name, in order."""
        return [t[1] for t in self.tags if t[0] == name and len(t) > 1]

    def has_tag(self, name: str) -> bool:
        """Whether a tag with that name stands here, with or without a value."""
        return any(t[0] == name for t in self.tags)


@final
class VerifiedEvent(Event):
    """An event whose id and signature hold. `verify_event` and `sign_event` make it, and nothing else can."""

    def __init__(self, _: Never) -> None:
        raise TypeError("only verify_event and sign_event make a VerifiedEvent")


def _verified(event: Event) -> VerifiedEvent:
    made = object.__new__(VerifiedEvent)
    # With the JSON, where it was made already.
    made.__dict__.update(event.__dict__)
    return made


def event_id(pubkey: str, created_at: int, kind: int, tags: Tags, content: str) -> bytes:
    """SHA-256 over the canonical array of NIP-01. orjson's escapes are exactly those of the NIP."""
    return hashlib.sha256(orjson.dumps([0, pubkey, created_at, kind, tags, content])).digest()


def sign_event(
    key: SecretKey, kind: int, content: str, tags: Iterable[Sequence[str]], created_at: int
) -> VerifiedEvent:
    """Build and sign an event. Raises `BadEvent` for text that is not valid UTF-8."""
    frozen = tuple(tuple(tag) for tag in tags)
    try:
        digest = event_id(key.pubkey, created_at, kind, frozen, content)
    except orjson.JSONEncodeError as error:
        raise BadEvent("content is not valid UTF-8") from error
    sig = key.sign(digest).hex()
    return _verified(Event(digest.hex(), key.pubkey, created_at, kind, frozen, content, sig))


def parse_event_untrusted(value: object) -> Event:
    """An event from decoded JSON, its structure checked, nothing more. Raises `BadEvent`."""
    if not isinstance(value, dict):
        raise BadEvent("an event is a JSON object")
    created_at, kind = value.get("created_at"), value.get("kind")
    content = value.get("content")
    if type(created_at) is not int or not 0 <= created_at < 2**53:
        raise BadEvent("created_at is not a Unix time")
    if type(kind) is not int or not 0 <= kind <= 65_535:
        raise BadEvent("kind is not an integer from 0 to 65535")
    if not isinstance(content, str):
        raise BadEvent("content is not a string")
    return Event(
        id=_hex(value.get("id"), 64, "id"),
        pubkey=_hex(value.get("pubkey"), 64, "pubkey"),
        created_at=created_at,
        kind=kind,
        tags=_tags(value.get("tags")),
        content=content,
        sig=_hex(value.get("sig"), 128, "sig"),
    )


def parse_event_json_untrusted(text: str | bytes) -> Event:
    """An event from JSON text. Raises `BadEvent`."""
    try:
        return parse_event_untrusted(orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise BadEvent("not JSON") from error


def verify_event(event: Event) -> VerifiedEvent:
    """The same event, its id the hash of its fields and its signature the author's. Raises `BadEvent`.

    What was verified before is not computed again.
    """
    if isinstance(event, VerifiedEvent):
        return event
    try:
        digest = event_id(event.pubkey, event.created_at, event.kind, event.tags, event.content)
    except orjson.JSONEncodeError as error:
        raise BadEvent("not valid UTF-8") from error
    if digest.hex() != event.id:
        raise BadEvent("id is not the hash of the event")
    if not crypto.schnorr_verify(event.pubkey, digest, bytes.fromhex(event.sig)):
        raise BadEvent("signature does not hold")
    return _verified(event)


def _hex(value: object, length: int, name: str) -> str:
    if not isinstance(value, str) or len(value) != length or not _HEX.issuperset(value):
        raise BadEvent(f"{name} is not {length} lower-case hex digits")
    return value


def _tags(value: object) -> Tags:
    if not isinstance(value, list) or len(value) > MAX_TAGS:
        raise BadEvent(f"tags is not a list of at most {MAX_TAGS}")
    return tuple(_tag(tag) for tag in value)


def _tag(value: object) -> Tag:
    if not isinstance(value, list) or not value:
        raise BadEvent("a tag is a list with at least a name")
    if not all(isinstance(part, str) for part in value):
        raise BadEvent("a tag holds strings only")
    return tuple(value)
