"""The messages between enclave and parent, as values. JSON lines; a blob follows its line as it is.

{"id", "method", "params"}            -> {"id", "result"} or {"id", "error"}
put {name, size}, and size bytes      -> {"id", "result": "ok"} once all of it is on the disk
get {name}, list {}                   -> {"id", "result": {"size"}}, and size bytes; or null
{"type": "shutdown"}                     from the parent, to whoever asked for ``events``
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from nips.errors import BadInput

MAX_LINE_BYTES = 64 * 1024
MAX_BLOB_BYTES = 128 << 20
MAX_META_BYTES = 1 << 20
MAX_DELETED_NAMES = 500
SHUTDOWN = "shutdown"
# Ours: a new disk key.
ROTATE = "rotate"


class BadMessage(BadInput):
    """The other side does not speak as it should; its connection ends."""


@dataclass(frozen=True)
class Request:
    """``number`` comes back with the reply."""

    number: int
    method: str
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """``error`` says why there is no result."""

    number: int
    result: object = None
    error: str | None = None


def encode_line(message: Request | Reply) -> bytes:
    """With its end."""
    value: dict[str, object] = {"id": message.number}
    if isinstance(message, Request):
        value |= {"method": message.method, "params": dict(message.params)}
    elif message.error is None:
        value["result"] = message.result
    else:
        value["error"] = message.error
    return orjson.dumps(value) + b"\n"


def decode_request_untrusted(line: bytes) -> Request:
    """Raises `BadMessage`."""
    match _object(line):
        case {"id": int(number), "method": str(method), **rest}:
            params = rest.get("params", {})
            if isinstance(params, dict) and len(method) <= 40:
                return Request(number, method, params)
        case _:
            pass
    raise BadMessage("a request has id, method and params")


def decode_reply_untrusted(line: bytes, number: int) -> Reply:
    """The reply to the request of that number. Raises `BadMessage`."""
    match _object(line):
        case {"id": int(given), "error": str(error)} if given == number:
            return Reply(number, None, error[:500])
        case {"id": int(given), "result": result} if given == number:
            return Reply(number, result)
        case _:
            pass
    raise BadMessage("that is no reply to what was asked")


def decode_event_untrusted(line: bytes) -> str:
    """The event's type. Raises `BadMessage`."""
    match _object(line):
        case {"type": str(kind)}:
            return kind[:40]
        case _:
            pass
    raise BadMessage("an event has a type")


def encode_event(kind: str) -> bytes:
    """With its end."""
    return orjson.dumps({"type": kind}) + b"\n"


def _object(line: bytes) -> object:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        raise BadMessage("a line is not JSON") from None


def text_in(params: Mapping[str, Any], name: str, most: int) -> str:
    """A text of at most so many characters. Raises `BadMessage`."""
    value = params.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise BadMessage(f"{name} must be a text of 1 to {most} characters")
    return value


def size_in(params: Mapping[str, Any], most: int = MAX_BLOB_BYTES) -> int:
    """A size in bytes. Raises `BadMessage`."""
    value = params.get("size")
    if type(value) is not int or not 0 <= value <= most:
        raise BadMessage(f"size must be 0 to {most} bytes")
    return value
