"""The value that escrow services keep: a whole copy of the key, or one share of it each.

With three services or more the key is split (SLIP-39, two of three up to k of n), so that no single one
learns anything of it; with one or two, each gets a whole copy. Beside the key stands the head of our
state, its number and hash, which is no secret: it lets us see when the parent hands us an old disk.
"""

import json
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice

import shamir_mnemonic

from nips.errors import BadInput

VERSION = 1
KEY_BYTES = 32
# SLIP-39 has at most 16 members in a group.
MAX_SHARES = 16
MAX_TRIES = 64


class BadStored(BadInput):
    """A service holds something that we did not write."""


@dataclass(frozen=True, order=True)
class Head:
    """The newest state that was written: its number, and the hash of its bytes (hex)."""

    number: int
    digest: str


@dataclass(frozen=True)
class DiskKey:
    """32 bytes that open the disk; they cannot be printed."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"a disk key has {KEY_BYTES} bytes")

    @classmethod
    def generate(cls) -> "DiskKey":
        """From the operating system's randomness."""
        return cls(secrets.token_bytes(KEY_BYTES))


@dataclass(frozen=True)
class Stored:
    """A value as one service keeps it. ``threshold`` is 1 for a whole copy; ``set_id`` names the split."""

    head: Head
    threshold: int
    set_id: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Gathered:
    """A key that was put together, the newest head that came with it, and the splits that yield it."""

    key: DiskKey
    head: Head
    set_ids: frozenset[str]


def threshold_for(services: int) -> int:
    """How many must come together: a majority of three or more, one of one or two."""
    return 1 if services < 3 else services // 2 + 1


def split(key: DiskKey, head: Head, services: int) -> list[str]:
    """One value for each service, in order. Raises `ValueError` for none or too many."""
    if not 1 <= services <= MAX_SHARES:
        raise ValueError(f"1 to {MAX_SHARES} services can keep a key")
    threshold, set_id = threshold_for(services), secrets.token_hex(8)
    if threshold == 1:
        parts = [key.secret.hex()] * services
    else:
        # The passphrase of SLIP-39 is not used: the shares are the secret.
        (parts,) = shamir_mnemonic.generate_mnemonics(
            1, [(threshold, services)], key.secret, iteration_exponent=0
        )
    return [encode(Stored(head, threshold, set_id, part)) for part in parts]


def encode(stored: Stored) -> str:
    """The text that a service keeps, well below its limit of 1,024 characters."""
    value = {
        "v": VERSION,
        "n": stored.head.number,
        "hash": stored.head.digest,
        "k": stored.threshold,
        "set": stored.set_id,
        "key" if stored.threshold == 1 else "share": stored.secret,
    }
    return json.dumps(value, separators=(",", ":"))


def decode_untrusted(text: str) -> Stored:
    """Raises `BadStored`, which never repeats the text."""
    try:
        value: object = json.loads(text)
    except ValueError:
        raise BadStored("a stored value is not JSON") from None
    match value:
        case {"v": 1, "n": int(n), "hash": str(digest), "k": int(k), "set": str(set_id), **rest}:
            secret = rest.get("key" if k == 1 else "share")
        case _:
            raise BadStored("a stored value has another shape or version")
    if isinstance(n, bool) or not 0 <= n < 2**53 or len(digest) > 128:
        raise BadStored("a stored value has no number or hash")
    if not 1 <= k <= MAX_SHARES or not isinstance(secret, str) or not 0 < len(set_id) <= 64:
        raise BadStored("a stored value has no secret, threshold or set")
    return Stored(Head(n, digest), k, set_id, secret)


def gather(stored: Sequence[Stored]) -> list[Gathered]:
    """Every different key that these values yield, the newest first. Values that lie yield nothing:
    shares carry a checksum, and the secret they lead to another one."""
    found: dict[bytes, list[Stored]] = defaultdict(list)
    for key, members in _found(stored):
        found[key] += members
    keys = [
        Gathered(DiskKey(key), max(m.head for m in members), frozenset(m.set_id for m in members))
        for key, members in found.items()
    ]
    return sorted(keys, key=lambda gathered: gathered.head, reverse=True)


def _found(stored: Sequence[Stored]) -> Iterator[tuple[bytes, Sequence[Stored]]]:
    sets: dict[tuple[str, int], set[Stored]] = defaultdict(set)
    for value in stored:
        if value.threshold == 1:
            key = _from_hex(value.secret)
            if key is not None:
                yield key, [value]
        else:
            sets[value.set_id, value.threshold].add(value)
    for (_, threshold), members in sets.items():
        yield from _combined(members, threshold)


def _combined(
    members: Iterable[Stored], threshold: int
) -> Iterator[tuple[bytes, Sequence[Stored]]]:
    # One liar among honest services must not spoil the rest: other choices of members are tried.
    choices = combinations(sorted(members, key=lambda m: m.secret), threshold)
    for chosen in islice(choices, MAX_TRIES):
        try:
            key = shamir_mnemonic.combine_mnemonics([member.secret for member in chosen])
        except (shamir_mnemonic.MnemonicError, ValueError, TypeError, KeyError):
            continue
        if len(key) == KEY_BYTES:
            yield key, chosen


def _from_hex(text: str) -> bytes | None:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES and text == key.hex() else None
