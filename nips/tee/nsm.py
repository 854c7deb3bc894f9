"""The Nitro Security Module's requests and responses (CBOR), for the device and for its simulator.

Shapes: AWS's nsm-io. A request without arguments is a bare text, others a map of one entry; a response
is a map of one entry, a bare text, or ``{"Error": code}``.
"""

from dataclasses import dataclass
from enum import Enum

from nips.errors import BadCbor, BadInput
from nips.tee import cbor

MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES = 0x1000, 0x3000
# What AWS documents; a module may take more, an old one will not.
MAX_PUBLIC_KEY, MAX_USER_DATA, MAX_NONCE = 1_024, 512, 512
PCR_COUNT, FIRST_FREE_PCR = 32, 16


class NsmCode(Enum):
    """Why the module refuses."""

    INVALID_ARGUMENT = "InvalidArgument"
    INVALID_INDEX = "InvalidIndex"
    INVALID_RESPONSE = "InvalidResponse"
    READ_ONLY_INDEX = "ReadOnlyIndex"
    INVALID_OPERATION = "InvalidOperation"
    BUFFER_TOO_SMALL = "BufferTooSmall"
    INPUT_TOO_LARGE = "InputTooLarge"
    INTERNAL_ERROR = "InternalError"


class NsmRefused(Exception):
    """The module answered with an error code."""

    def __init__(self, code: NsmCode) -> None:
        super().__init__(f"the Nitro Security Module refuses: {code.value}")
        self.code = code


class BadNsmMessage(BadInput):
    """A request or response is not the module's."""


@dataclass(frozen=True)
class NsmRequest:
    """An operation and its arguments; no arguments travel as a bare text."""

    operation: str
    arguments: dict[str, object]


@dataclass(frozen=True)
class NsmDescription:
    """What ``DescribeNSM`` tells."""

    module_id: str
    version: tuple[int, int, int]
    max_pcrs: int
    locked_pcrs: tuple[int, ...]


def attestation_request(
    public_key: bytes | None, user_data: bytes | None, nonce: bytes | None
) -> NsmRequest:
    """A request for a document. Raises `NsmRefused` for what an old module would refuse."""
    for value, most in (
        (public_key, MAX_PUBLIC_KEY),
        (user_data, MAX_USER_DATA),
        (nonce, MAX_NONCE),
    ):
        if value is not None and len(value) > most:
            raise NsmRefused(NsmCode.INPUT_TOO_LARGE)
    arguments: dict[str, object] = {
        "user_data": user_data,
        "nonce": nonce,
        "public_key": public_key,
    }
    return NsmRequest("Attestation", arguments)


def encode_request(request: NsmRequest) -> bytes:
    """Raises `NsmRefused` when it is larger than the device takes."""
    operation, arguments = request.operation, request.arguments
    raw = cbor.encode({operation: arguments} if arguments else operation)
    if len(raw) > MAX_REQUEST_BYTES:
        raise NsmRefused(NsmCode.INPUT_TOO_LARGE)
    return raw


def decode_request_untrusted(raw: bytes) -> NsmRequest:
    """The simulator's side. Raises `BadNsmMessage`."""
    value = _decode(raw)
    if isinstance(value, str):
        return NsmRequest(value, {})
    if isinstance(value, dict) and len(value) == 1:
        ((operation, arguments),) = value.items()
        if isinstance(operation, str) and isinstance(arguments, dict):
            return NsmRequest(operation, {str(name): item for name, item in arguments.items()})
    raise BadNsmMessage("a request is a text, or a map of one entry")


def encode_response(operation: str, result: dict[str, object] | None) -> bytes:
    """The simulator's side."""
    return cbor.encode(operation if result is None else {operation: result})


def encode_refusal(code: NsmCode) -> bytes:
    """The simulator's side."""
    return cbor.encode({"Error": code.value})


def open_response_untrusted(operation: str, raw: bytes) -> dict[str, object]:
    """The result; empty for operations that return nothing. Raises `NsmRefused`, `BadNsmMessage`."""
    value = _decode(raw)
    if value == operation:
        return {}
    if isinstance(value, dict) and len(value) == 1:
        ((name, result),) = value.items()
        if name == "Error" and isinstance(result, str):
            raise NsmRefused(_code(result))
        if name == operation and isinstance(result, dict):
            return {str(field): item for field, item in result.items()}
    raise BadNsmMessage(f"the module does not answer {operation}")


def open_bytes_untrusted(operation: str, field: str, raw: bytes) -> bytes:
    """One field of bytes of a result. Raises `NsmRefused`, `BadNsmMessage`."""
    value = open_response_untrusted(operation, raw).get(field)
    if not isinstance(value, bytes) or not value:
        raise BadNsmMessage(f"the module's answer to {operation} has no {field}")
    return value


def open_description_untrusted(raw: bytes) -> NsmDescription:
    """Raises `NsmRefused`, `BadNsmMessage`."""
    match open_response_untrusted("DescribeNSM", raw):
        case {
            "version_major": int(major), "version_minor": int(minor), "version_patch": int(patch),
            "module_id": str(module_id), "max_pcrs": int(max_pcrs), "locked_pcrs": list(locked),
            "digest": "SHA384",
        }:  # fmt: skip
            indices = tuple(index for index in locked if isinstance(index, int))
            return NsmDescription(module_id, (major, minor, patch), max_pcrs, indices)
        case _:
            raise BadNsmMessage("the module does not describe itself")


def _code(text: str) -> NsmCode:
    try:
        return NsmCode(text)
    except ValueError:
        raise BadNsmMessage("the module answers with an unknown error") from None


def _decode(raw: bytes) -> object:
    if not 0 < len(raw) <= MAX_RESPONSE_BYTES:
        raise BadNsmMessage("a message is empty or too long")
    try:
        return cbor.decode_untrusted(raw)
    except BadCbor as error:
        raise BadNsmMessage(f"not the module's CBOR: {error}") from error
