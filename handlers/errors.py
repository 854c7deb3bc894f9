"""The one vocabulary of refusals. A refusal is a value; only surprises are exceptions."""

from dataclasses import dataclass
from enum import Enum


class Code(Enum):
    """The machine word that an ``error`` string starts with (as in NIP-01)."""

    INVALID = "invalid"
    RESTRICTED = "restricted"
    RATE_LIMITED = "rate-limited"
    INSUFFICIENT_BALANCE = "insufficient-balance"
    NOT_FOUND = "not-found"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


@dataclass(frozen=True)
class Refusal:
    """Why a request was not carried out, in words that a person can act on."""

    code: Code
    text: str

    def __str__(self) -> str:
        return f"{self.code.value}: {self.text}"


def invalid(text: str) -> Refusal:
    """The request itself is wrong."""
    return Refusal(Code.INVALID, text)


def restricted(text: str) -> Refusal:
    """The caller may not do that."""
    return Refusal(Code.RESTRICTED, text)


def unavailable(text: str) -> Refusal:
    """Not now."""
    return Refusal(Code.UNAVAILABLE, text)


def not_found(text: str) -> Refusal:
    """There is no such thing, or none that the caller may know of."""
    return Refusal(Code.NOT_FOUND, text)
