"""The keeper of what we seal, as a port. It may lose, forge, swap and withhold; nothing here believes it."""

from collections.abc import Sequence
from typing import Protocol

from bot.checkpoint.seal import NAME_BYTES

DIGEST_CHARACTERS = 64


class BlobsFailed(Exception):
    """The keeper does not do what it was asked for now; the message says why. Asking again may help."""


class Blobs(Protocol):
    """Names are those that `pack_name` and `manifest_name` make. Everything raises `BlobsFailed`."""

    async def put(self, name: str, parts: Sequence[bytes]) -> None:
        """Return when the keeper says that all of it is on its disk."""
        ...

    async def get(self, name: str, most_bytes: int) -> bytes | None:
        """None when the keeper says that there is none."""
        ...

    async def names(self) -> list[str]:
        """Of everything that is kept, at most so many as one message holds. Only ever good for tidying up."""
        ...

    async def delete(self, names: Sequence[str]) -> None:
        """What is not there is as good as deleted."""
        ...


def pack_name(pack: bytes) -> str:
    """``p-`` and the pack's random name."""
    return f"p-{pack.hex()}"


def manifest_name(digest: str) -> str:
    """``m-`` and the hash of its bytes: asked for by it, another one cannot be taken for it."""
    return f"m-{digest}"


def is_pack_name(name: str) -> bool:
    """Whether it is one of ours, of a pack."""
    return _is_name(name, "p-", NAME_BYTES * 2)


def is_manifest_name(name: str) -> bool:
    """Whether it is one of ours, of a manifest."""
    return _is_name(name, "m-", DIGEST_CHARACTERS)


def _is_name(name: str, prefix: str, digits: int) -> bool:
    rest = name.removeprefix(prefix)
    return (
        name.startswith(prefix)
        and len(rest) == digits
        and all(c in "0123456789abcdef" for c in rest)
    )
