"""The value that escrow services keep: a whole copy of the key, or one share of it each.

With three services or more the key is split (SLIP-39, a majority must come together), so that no single one
learns anything of it; with one or two, each gets a whole copy. A key is split once: the shares are sealed with
our backup and handed out again and again, so that what services hold always fits together. While it is split anew, a
value has a part of both splits: at no moment does anything depend on which of two writes came through.

Beside the secret stand the head of our state, its number and hash, and which of our lives may write there. Neither is
a secret, but both are authenticated with the key: a service, or whoever puts a value there, cannot make us believe in a
state that never was.
"""

import hashlib
import hmac
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice

import orjson
import shamir_mnemonic
from shamir_mnemonic.share import Share

from nips.errors import BadInput

VERSION = 3
KEY_BYTES = 32
# SLIP-39 has at most 16 members in a group; an odd number of them, so that any two majorities have one in common.
MEMBERS = 15
# Of a value: two while a key is split anew.
MOST_PARTS = 2
MAX_TRIES = 64


class BadStored(BadInput):
    """A service holds something that we did not write."""


@dataclass(frozen=True, order=True)
class Head:
    """The newest state that was written: which boot wrote it, its number, and the hash of its bytes (hex).

    The epoch goes up with every boot, the number with every state; so of two that run at once the one that booted
    later is ahead, whatever the other wrote since.
    """

    epoch: int
    number: int
    digest: str

    def is_behind(self, other: "Head") -> bool:
        """Whether the other one was written later."""
        return (self.epoch, self.number) < (other.epoch, other.number)


@dataclass(frozen=True)
class Fence:
    """Whose turn it is at a service: a life of a lower epoch writes there no more. ``writer``: some hex that only this life
    uses, for two that boot at once may take the same epoch."""

    epoch: int
    writer: str

    @classmethod
    def above(cls, epochs: Iterable[int]) -> "Fence":
        """For a new life."""
        return cls(max(epochs, default=0) + 1, secrets.token_hex(8))


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
class Split:
    """How a key is shared: ``parts`` has one whole copy (hex) when the threshold k is 1, else 2k - 1 shares.

    There are no more, so that of any two groups that could give the key somebody is in both: with fewer in common, two
    of us could each have a majority behind them, and two states.
    """

    set_id: str
    threshold: int
    parts: tuple[str, ...] = field(repr=False)

    def part(self, index: int) -> "Part":
        """For the member with that index (0 for whole copies)."""
        return Part(self.threshold, self.set_id, index, self.parts[index])


@dataclass(frozen=True)
class Part:
    """What one member has of a split: so many different ones of one set yield the key."""

    threshold: int
    set_id: str
    index: int
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Stored:
    """A value as one service keeps it. ``mac`` ties all of it to the key; one of its parts may be another key's."""

    fence: Fence
    head: Head
    parts: tuple[Part, ...]
    mac: str = ""

    def is_authentic(self, key: DiskKey) -> bool:
        """Whether somebody who has the key wrote this."""
        return hmac.compare_digest(self.mac.encode(), _mac(key, self).encode())


@dataclass(frozen=True)
class Gathered:
    """A key that was put together, and the newest head that was written with it, if any."""

    key: DiskKey
    newest: Head | None


def threshold_for(services: int) -> int:
    """How many must come together: a majority of three or more, one of one or two."""
    return 1 if services < 3 else min(services, MEMBERS) // 2 + 1


def make_split(key: DiskKey, services: int) -> Split:
    """For a key that so many services will keep, up to `MEMBERS`."""
    threshold, set_id = threshold_for(services), secrets.token_hex(8)
    if threshold == 1:
        return Split(set_id, 1, (key.secret.hex(),))
    # The passphrase of SLIP-39 is not used: the shares are the secret.
    (parts,) = shamir_mnemonic.generate_mnemonics(
        1, [(threshold, 2 * threshold - 1)], key.secret, iteration_exponent=0
    )
    return Split(set_id, threshold, tuple(parts))


def fitting_split(split: Split, key: DiskKey, answering: int, holding: int) -> Split | None:
    """Another one, where membership changed: so many answer, so many may hold a part. It grows when the new parts all find
    somebody; it shrinks when the others have been silent for so long that they forgot theirs. Never back to whole copies."""
    for members in (answering, holding):
        needed = threshold_for(members)
        grows = needed > split.threshold and answering >= 2 * needed - 1
        shrinks = 1 < needed < split.threshold and holding <= members <= answering
        if grows or shrinks:
            return make_split(key, members)
    return None


def to_store(key: DiskKey, parts: Sequence[Part], head: Head, fence: Fence) -> Stored:
    """The value for one member."""
    value = Stored(fence, head, tuple(parts))
    return replace(value, mac=_mac(key, value))


def fenced(key: DiskKey, value: Stored, fence: Fence) -> Stored:
    """The same head and secret, for another life to go on from."""
    value = replace(value, fence=fence)
    return replace(value, mac=_mac(key, value))


def _mac(key: DiskKey, value: Stored) -> str:
    head = [value.head.epoch, value.head.number, value.head.digest]
    parts = list(map(_row, value.parts))
    written = orjson.dumps([VERSION, value.fence.epoch, value.fence.writer, head, parts])
    return hmac.new(key.secret, b"enclaved escrow value" + written, hashlib.sha256).hexdigest()


def _row(part: Part) -> list[object]:
    return [part.threshold, part.set_id, part.index, part.secret]


def encode(value: Stored) -> str:
    """The text that a service keeps, below its limit of 1,024 characters also with two parts."""
    return orjson.dumps(
        {
            "v": VERSION,
            "fence": value.fence.epoch,
            "by": value.fence.writer,
            "e": value.head.epoch,
            "n": value.head.number,
            "hash": value.head.digest,
            "parts": list(map(_row, value.parts)),
            "mac": value.mac,
        }
    ).decode()


def decode_untrusted(text: str) -> Stored:
    """Raises `BadStored`, which never repeats the text."""
    try:
        value: object = orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        raise BadStored("a stored value is not JSON") from None
    match value:
        case {
            "v": 3, "fence": int(fence), "by": str(writer), "e": int(e), "n": int(n), "hash": str(digest),
            "parts": list(rows), "mac": str(mac),
        }:  # fmt: skip
            pass
        case _:
            raise BadStored("a stored value has another shape or version")
    if not all(type(each) is int and 0 <= each < 2**53 for each in (fence, e, n)):
        raise BadStored("a stored value has no fence, epoch or number")
    if len(digest) > 128 or len(writer) > 32:
        raise BadStored("a stored value has no hash or writer")
    if not 1 <= len(rows) <= MOST_PARTS:
        raise BadStored("a stored value has no part, or too many")
    return Stored(Fence(fence, writer), Head(e, n, digest), tuple(map(_part_untrusted, rows)), mac)


def _part_untrusted(row: object) -> Part:
    match row:
        case [int(k), str(set_id), int(index), str(secret)]:
            pass
        case _:
            raise BadStored("a part of a stored value has another shape")
    if not 1 <= k <= MEMBERS or not 0 <= index < MEMBERS or not 0 < len(set_id) <= 64:
        raise BadStored("a stored value has no threshold, set or index")
    return Part(k, set_id, index, secret)


def gather(stored: Sequence[Stored]) -> list[Gathered]:
    """Every different key that these values yield. Values that lie yield nothing, or another key, which
    opens nothing; and they lend no head to a key that they were not written with."""
    keys = dict.fromkeys(DiskKey(secret) for secret in _found(stored))
    return [
        Gathered(key, max((s.head for s in stored if s.is_authentic(key)), default=None))
        for key in keys
    ]


def _found(stored: Sequence[Stored]) -> Iterator[bytes]:
    sets: dict[tuple[str, int], list[str]] = defaultdict(list)
    for part in (part for value in stored for part in value.parts):
        if part.threshold == 1:
            key = _from_hex(part.secret)
            if key is not None:
                yield key
        elif _is_share(part):
            sets[part.set_id, part.threshold].append(part.secret)
    for (_, threshold), members in sets.items():
        yield from _combined(sorted(set(members)), threshold)


def _is_share(part: Part) -> bool:
    """Looked at before anything is computed: a share may ask for hours of key stretching."""
    try:
        share = Share.from_mnemonic(part.secret)
    except (shamir_mnemonic.MnemonicError, ValueError, KeyError, IndexError):
        return False
    return (share.iteration_exponent, share.group_count, share.member_threshold, share.index) == (
        0, 1, part.threshold, part.index,
    )  # fmt: skip


def _combined(members: Iterable[str], threshold: int) -> Iterator[bytes]:
    # One liar among honest services must not spoil the rest: other choices of members are tried.
    for chosen in islice(combinations(members, threshold), MAX_TRIES):
        try:
            key = shamir_mnemonic.combine_mnemonics(list(chosen))
        except (shamir_mnemonic.MnemonicError, ValueError, TypeError, KeyError):
            continue
        if len(key) == KEY_BYTES:
            yield key


def _from_hex(text: str) -> bytes | None:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES and text == key.hex() else None
