"""Typed parameters: each command declares a dataclass, its fields declare their checks.

JSON enters as ``object`` and leaves as the dataclass, or as a `Refusal` that names the parameter. A door
that carries text (a mention) parses words by the same declarations.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar, cast

from handlers.domain.image import BadImageRef, parse_image_ref
from handlers.errors import Refusal, invalid
from nips.errors import BadInput
from nips.event import parse_event_untrusted
from nips.nip19 import pubkey_from_npub_untrusted

P = TypeVar("P")
MAX_ENV, MAX_ENV_VALUE, MAX_ENV_TOTAL = 64, 4_096, 16_384
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,30}")
_NONCE = re.compile(r"(?:[0-9a-f]{2}){16,64}")
_ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class _Bad(ValueError):
    """A value that a check refuses; caught in this module only."""


@dataclass(frozen=True)
class Check:
    """How a value is checked, how it reads in help, and whether text may carry it."""

    says: str
    parse: Callable[[object], object]
    from_text: Callable[[str], object] | None = str


def param(check: Check, default: Any = MISSING) -> Any:
    """A dataclass field with a check; without a default it is required."""
    return field(default=default, metadata={"check": check})


def check_of(item: "Field[Any]") -> Check:
    """The check that a field declares."""
    return cast("Check", item.metadata["check"])


def is_required(item: "Field[Any]") -> bool:
    """Whether a parameter must be given."""
    return item.default is MISSING


def parse_params(cls: type[P], raw: Mapping[str, object]) -> P | Refusal:
    """The typed parameters, or the refusal that names what is wrong."""
    declared = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    for name in raw:
        if name not in declared:
            known = ", ".join(declared) or "none"
            return invalid(f"unknown parameter {name[:40]!r}; known: {known}")
    values: dict[str, object] = {}
    for name, item in declared.items():
        if raw.get(name) is None:
            if is_required(item):
                return invalid(f"{name} is missing: {check_of(item).says}")
            continue
        try:
            values[name] = check_of(item).parse(raw[name])
        except (_Bad, BadInput, BadImageRef) as error:
            return invalid(f"{name} must be {check_of(item).says} ({error})")
    return cls(**values)


def words_to_params(
    cls: type[P], words: Sequence[str], named: Sequence[tuple[str, str]]
) -> dict[str, object] | Refusal:
    """Words of a text command as raw parameters: positional ones in order, then ``name=value``."""
    declared = list(fields(cls))  # type: ignore[arg-type]
    by_name = {item.name: item for item in declared}
    if len(words) > len(declared):
        return invalid(
            f"too many words; write {' '.join(item.name for item in declared) or 'nothing'}"
        )
    raw: dict[str, object] = {}
    for name, text in [
        *((item.name, word) for item, word in zip(declared, words, strict=False)),
        *named,
    ]:
        item = by_name.get(name)
        if item is None:
            return invalid(
                f"unknown parameter {name[:40]!r}; known: {', '.join(by_name) or 'none'}"
            )
        if name in raw:
            return invalid(f"{name} is given twice")
        from_text = check_of(item).from_text
        if from_text is None:
            return invalid(f"{name} cannot be given in a public note: use the encrypted RPC")
        raw[name] = from_text(text)
    return raw


def _integer(low: int, high: int) -> Callable[[object], object]:
    def parse(value: object) -> object:
        # bool is a subclass of int in Python; true is not a number here.
        if type(value) is not int:
            raise _Bad("not an integer")
        if not low <= value <= high:
            raise _Bad("out of range")
        return value

    return parse


def _integer_from_text(text: str) -> object:
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else text


def integer(low: int, high: int, unit: str = "") -> Check:
    """A JSON integer in a range; not a string, a float or a boolean."""
    return Check(
        f"an integer {low}..{high}{' ' + unit if unit else ''}",
        _integer(low, high),
        _integer_from_text,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Bad("not a string")
    return value


def _image(value: object) -> object:
    return parse_image_ref(_text(value))


def _name(value: object) -> object:
    if not _NAME.fullmatch(_text(value)):
        raise _Bad("does not fit")
    return value


def _pubkey(value: object) -> object:
    return pubkey_from_npub_untrusted(_text(value).removeprefix("nostr:"))


def _event(value: object) -> object:
    return parse_event_untrusted(value)


def _nonce(value: object) -> object:
    if not _NONCE.fullmatch(_text(value)):
        raise _Bad("does not fit")
    return value


def _env(value: object) -> object:
    if not isinstance(value, dict) or len(value) > MAX_ENV:
        raise _Bad(f"not an object of at most {MAX_ENV} entries")
    total = 0
    for name, text in value.items():
        if not _ENV_KEY.fullmatch(name) or name.upper().startswith("ENCLAVED"):
            raise _Bad(f"the name {name[:64]!r} is not allowed")
        if not isinstance(text, str) or len(text) > MAX_ENV_VALUE or "\0" in text:
            raise _Bad(
                f"the value of {name} is not a string of at most {MAX_ENV_VALUE} characters"
            )
        total += len(name) + len(text)
    if total > MAX_ENV_TOTAL:
        raise _Bad(f"more than {MAX_ENV_TOTAL} characters in all")
    return dict(value)


def _word(*allowed: str) -> Callable[[object], object]:
    def parse(value: object) -> object:
        if value not in allowed or not isinstance(value, str):
            raise _Bad("something else")
        return value

    return parse


def _boolean(value: object) -> object:
    if not isinstance(value, bool):
        raise _Bad("not true or false")
    return value


def _boolean_from_text(text: str) -> object:
    return {"true": True, "yes": True, "false": False, "no": False}.get(text.lower(), text)


def _bounded(longest: int) -> Callable[[object], object]:
    def parse(value: object) -> object:
        if not 0 < len(_text(value)) <= longest:
            raise _Bad("empty or too long")
        return value

    return parse


IMAGE = Check(
    "an image reference such as docker.io/library/nginx:1.27 or host/name@sha256:…", _image
)
NAME = Check("a name of 2 to 31 letters a-z, digits and hyphens", _name)
PUBKEY = Check("a container's npub or 64 hex digits", _pubkey)
APP_PUBKEY = Check("the app's key: an npub or 64 hex digits", _pubkey)
PROOF = Check("an event of kind 22242 that answers the challenge", _event, None)
NONCE = Check("a nonce of 16 to 64 bytes in lower-case hex", _nonce)
ENV = Check(
    f"an object of at most {MAX_ENV} environment variables, strings to strings", _env, None
)
UPGRADE = Check('"" or "auto"', _word("", "auto"))
FLAG = Check("true or false", _boolean, _boolean_from_text)
BOLT11 = Check("a BOLT-11 invoice", _bounded(4_096))
QUOTE_ID = Check("the quote_id of a quote", _bounded(64))
COMMAND = Check("a command's name", _bounded(32))
