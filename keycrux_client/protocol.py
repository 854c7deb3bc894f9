"""Keycrux's methods (kind 29525), as values: what is asked, and what came back.

To the letter of the existing services: ``attestation`` is a base64 document whose public key signs the
request; ``get`` answers the data or the error ``Not found``; ``set`` answers ``ok``.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from enum import Enum

from nips.event import Event
from nips.rpc import RpcReply

MAX_DATA = 1_024
NOT_FOUND = "Not found"
LIFE_S = 72 * 3600


@dataclass(frozen=True)
class EscrowPolicy:
    """Who may have the key: this repository's releases, signed by every one of these maintainers.

    ``release_pubkeys`` is empty only for debug enclaves, whose measurements nobody can sign.
    """

    repo: str
    release_pubkeys: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.repo:
            raise ValueError("an escrow policy without a repository lets anybody have the key")

    def as_dict(self) -> dict[str, object]:
        """As it travels."""
        policy: dict[str, object] = {"ref": self.repo}
        if self.release_pubkeys:
            policy["release_pubkeys"] = list(self.release_pubkeys)
        return policy


@dataclass(frozen=True)
class Credentials:
    """What we can show for the code that runs: its release signatures (63794)."""

    repo: str
    releases: tuple[Event, ...]

    def as_dict(self) -> dict[str, object]:
        """As it travels, as ``input``."""
        shown: dict[str, object] = {"ref": self.repo}
        if self.releases:
            shown["release_signatures"] = [event.as_dict() for event in self.releases]
        return shown


def get_params(document: bytes, credentials: Credentials) -> dict[str, object]:
    """Parameters of ``get``."""
    return {"attestation": _base64(document), "input": credentials.as_dict()}


def set_params(
    document: bytes,
    credentials: Credentials,
    policy: EscrowPolicy,
    data: str,
    expected: str | None = None,
) -> dict[str, object]:
    """Parameters of ``set``. There is no way to set without a policy. Raises `ValueError`.

    ``expected``, an extension of ours: what the service is believed to hold ("" for nothing), by its hash. One that
    holds something else by now refuses; services that do not know of it store whatever is asked.
    """
    if not 0 < len(data) < MAX_DATA:
        raise ValueError(f"data has 1 to {MAX_DATA - 1} characters")
    compared = {} if expected is None else {"expected": held_digest(expected)}
    return compared | {
        "attestation": _base64(document),
        "data": data,
        "policy": policy.as_dict(),
        "input": credentials.as_dict(),
    }


def held_digest(data: str) -> str:
    """How ``expected`` names a value: SHA-256 in hex, "" for none."""
    return hashlib.sha256(data.encode()).hexdigest() if data else ""


class Got(Enum):
    """What a service says to ``get``."""

    HELD = "holds a value"
    NONE = "holds none for us"
    SILENT = "gives no usable answer"


@dataclass(frozen=True)
class GetReply:
    """``data`` means something when HELD; it is a secret."""

    got: Got
    data: str = field(default="", repr=False)


def read_get_reply(reply: RpcReply) -> GetReply:
    """Only the one error that means "none" is taken for that; any other says nothing."""
    if reply.error is not None:
        return GetReply(Got.NONE if reply.error == NOT_FOUND else Got.SILENT)
    if isinstance(reply.result, str) and 0 < len(reply.result) < MAX_DATA:
        return GetReply(Got.HELD, reply.result)
    return GetReply(Got.SILENT)


def is_ok(reply: RpcReply) -> bool:
    """Whether a ``set`` was carried out."""
    return reply.error is None and reply.result == "ok"


def _base64(document: bytes) -> str:
    return base64.b64encode(document).decode()
