"""Messages between client and relay (NIP-01, with NIP-42 AUTH and NIP-45 COUNT).

`decode_client_untrusted` is the relay's ear, `decode_relay_untrusted` the client's; both raise only
`BadMessage`. The `encode_…` functions give the JSON text that travels in one websocket frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from nips.errors import BadInput, BadMessage
from nips.event import Event, parse_event_untrusted
from nips.filters import Filter, parse_filter_untrusted

MAX_SUB_ID = 64


@dataclass(frozen=True)
class PublishMessage:
    """Client: here is an event."""

    event: Event


@dataclass(frozen=True)
class ReqMessage:
    """Client: send me what matches, stored and live."""

    sub_id: str
    filters: tuple[Filter, ...]


@dataclass(frozen=True)
class CountMessage:
    """Client: how many match (NIP-45)?"""

    sub_id: str
    filters: tuple[Filter, ...]


@dataclass(frozen=True)
class CloseMessage:
    """Client: end that subscription."""

    sub_id: str


@dataclass(frozen=True)
class AuthResponse:
    """Client: this event proves who I am (NIP-42)."""

    event: Event


ClientMessage = PublishMessage | ReqMessage | CountMessage | CloseMessage | AuthResponse


@dataclass(frozen=True)
class EventMessage:
    """Relay: an event for one of your subscriptions."""

    sub_id: str
    event: Event


@dataclass(frozen=True)
class OkMessage:
    """Relay: what became of the event you published. ``arrived`` is the one reading of it."""

    event_id: str
    accepted: bool
    reason: str

    @property
    def arrived(self) -> bool:
        """Whether the relay has it. NIP-01: a duplicate has arrived, whatever the flag says."""
        return self.accepted or self.reason.lower().startswith("duplicate:")


@dataclass(frozen=True)
class EoseMessage:
    """Relay: all stored events were sent."""

    sub_id: str


@dataclass(frozen=True)
class ClosedMessage:
    """Relay: I ended your subscription, or never started it."""

    sub_id: str
    reason: str


@dataclass(frozen=True)
class NoticeMessage:
    """Relay: a text for a person."""

    text: str


@dataclass(frozen=True)
class AuthChallenge:
    """Relay: prove who you are (NIP-42)."""

    challenge: str


@dataclass(frozen=True)
class CountResult:
    """Relay: that many match (NIP-45)."""

    sub_id: str
    count: int


RelayMessage = (
    EventMessage
    | OkMessage
    | EoseMessage
    | ClosedMessage
    | NoticeMessage
    | AuthChallenge
    | CountResult
)


def decode_client_untrusted(frame: str | bytes) -> ClientMessage:
    """What a client says, from one frame. Raises `BadMessage`, whose text may go back as NOTICE."""
    match _array(frame):
        case ["EVENT", event]:
            return PublishMessage(_event(event))
        case ["REQ", sub_id, first, *rest]:
            return ReqMessage(_sub_id(sub_id), _filters([first, *rest]))
        case ["COUNT", sub_id, first, *rest]:
            return CountMessage(_sub_id(sub_id), _filters([first, *rest]))
        case ["CLOSE", sub_id]:
            return CloseMessage(_sub_id(sub_id))
        case ["AUTH", event]:
            return AuthResponse(_event(event))
        case _:
            raise BadMessage("not a message of NIP-01")


def decode_relay_untrusted(frame: str | bytes) -> RelayMessage:
    """What a relay says, from one frame. Raises `BadMessage`.

    Relays leave out reasons, send null for them, and add elements of their own: where the meaning is plain,
    it is taken.
    """
    match _array(frame):
        case ["EVENT", str(sub_id), event, *_]:
            return EventMessage(sub_id, _event(event))
        case ["OK", str(event_id), bool(accepted), *rest]:
            return OkMessage(event_id, accepted, _reason(rest))
        case ["EOSE", str(sub_id), *_]:
            return EoseMessage(sub_id)
        case ["CLOSED", str(sub_id), *rest]:
            return ClosedMessage(sub_id, _reason(rest))
        case ["NOTICE", *rest]:
            return NoticeMessage(_reason(rest))
        case ["AUTH", str(challenge), *_]:
            return AuthChallenge(challenge)
        case ["COUNT", str(sub_id), {"count": int(count)}, *_]:
            return CountResult(sub_id, count)
        case _:
            raise BadMessage("not a message of NIP-01")


def encode_event(sub_id: str, event: Event) -> bytes:
    """Relay to client; the event's JSON is made once, however many subscribers it has."""
    return b'["EVENT",' + orjson.dumps(sub_id) + b"," + event.json + b"]"


def encode_publish(event: Event) -> bytes:
    """Client to relay."""
    return b'["EVENT",' + event.json + b"]"


def encode_req(sub_id: str, filters: Sequence[Filter]) -> bytes:
    """Client to relay."""
    return orjson.dumps(["REQ", sub_id, *(f.as_dict() for f in filters)])


def encode_auth(event: Event) -> bytes:
    """Client to relay (NIP-42)."""
    return b'["AUTH",' + event.json + b"]"


def encode(*parts: object) -> bytes:
    """Any other message: an array of JSON values."""
    return orjson.dumps(parts)


def encode_refusal(frame: str | bytes, reason: str) -> bytes:
    """The answer to a frame that cannot be decoded: OK or CLOSED where it says for what, else NOTICE."""
    try:
        parts = _array(frame)
    except BadMessage:
        return encode("NOTICE", f"invalid: {reason}")
    match parts:
        case ["EVENT", {"id": str(event_id)}, *_]:
            return encode("OK", event_id[:64], False, f"invalid: {reason}")
        case ["REQ" | "COUNT", str(sub_id), *_] if 1 <= len(sub_id) <= MAX_SUB_ID:
            return encode("CLOSED", sub_id, f"invalid: {reason}")
        case _:
            return encode("NOTICE", f"invalid: {reason}")


def _array(frame: str | bytes) -> list[object]:
    # orjson refuses nesting beyond 1024 levels, so depth cannot exhaust the stack.
    try:
        value: object = orjson.loads(frame)
    except orjson.JSONDecodeError as error:
        raise BadMessage("not JSON") from error
    if not isinstance(value, list):
        raise BadMessage("a message is a JSON array")
    return value


def _reason(rest: list[object]) -> str:
    return rest[0] if rest and isinstance(rest[0], str) else ""


def _event(value: object) -> Event:
    try:
        return parse_event_untrusted(value)
    except BadInput as error:
        raise BadMessage(f"bad event: {error}") from error


def _filters(values: list[object]) -> tuple[Filter, ...]:
    try:
        return tuple(parse_filter_untrusted(value) for value in values)
    except BadInput as error:
        raise BadMessage(f"bad filter: {error}") from error


def _sub_id(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_SUB_ID:
        raise BadMessage(f"a subscription id is a string of 1 to {MAX_SUB_ID} characters")
    return value
