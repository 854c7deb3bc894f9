"""Who signed an image, and which release is the newest: the rules, over plain facts."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import total_ordering

_VERSION = re.compile(
    r"v?(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})"
    r"(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?"
)
MAX_VERSION = 64


@total_ordering
@dataclass(frozen=True)
class Version:
    """A semantic version (semver.org 2.0.0); build metadata plays no part in the order."""

    numbers: tuple[int, int, int]
    pre: tuple[str, ...] = ()

    def __lt__(self, other: "Version") -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[tuple[int, int, int], bool, list[tuple[bool, int, str]]]:
        # A release is newer than its pre-releases; numbers among identifiers are older than words.
        words = [
            (not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in self.pre
        ]
        return self.numbers, not self.pre, words


def parse_version(text: str) -> Version | None:
    """None for what is no semantic version: it is never newer than anything."""
    found = _VERSION.fullmatch(text) if len(text) <= MAX_VERSION else None
    if found is None:
        return None
    major, minor, patch = (int(found[group]) for group in (1, 2, 3))
    return Version((major, minor, patch), tuple((found[4] or "").split(".")) if found[4] else ())


class Signed(Enum):
    """What a signer has to say of an image."""

    SIGNED = "signed"
    MISSING = "no signature found"
    CONTRADICTS = "signed another image as this version"


@dataclass(frozen=True)
class Claim:
    """A signature that holds, as plain facts."""

    signer: str
    repo: str
    image_id: str
    version: str


@dataclass(frozen=True)
class SignerVerdict:
    """One signer's part."""

    pubkey: str
    signed: Signed


@dataclass(frozen=True)
class ReleaseVerdict:
    """Every signer that the image names, in its order. No signers means nobody vouches."""

    signers: tuple[SignerVerdict, ...]

    @property
    def is_signed_by_all(self) -> bool:
        """True only if somebody is asked and everybody signed."""
        return bool(self.signers) and all(s.signed is Signed.SIGNED for s in self.signers)


def judge(image: Claim, signers: Sequence[str], claims: Sequence[Claim]) -> ReleaseVerdict:
    """``image``: what is asked about (its ``signer`` plays no part)."""
    signed: dict[str, set[str]] = defaultdict(set)
    for claim in claims:
        if (claim.repo, claim.version) == (image.repo, image.version):
            signed[claim.signer].add(claim.image_id)
    return ReleaseVerdict(tuple(SignerVerdict(s, _says(image, signed[s])) for s in signers))


def _says(image: Claim, image_ids: set[str]) -> Signed:
    if not image_ids:
        return Signed.MISSING
    # Two images under one version: which of them is meant, nobody can tell.
    return Signed.SIGNED if image_ids == {image.image_id} else Signed.CONTRADICTS


def newest_by_all(repo: str, signers: Sequence[str], claims: Sequence[Claim]) -> str | None:
    """The newest version for which every signer signed one and the same image."""
    by_version: dict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        if claim.repo == repo and claim.signer in signers:
            by_version[claim.version].append(claim)
    agreed = [
        (version, text)
        for text, signed in by_version.items()
        if (version := parse_version(text)) and _all_agree(signers, signed)
    ]
    return max(agreed)[1] if agreed else None


def _all_agree(signers: Sequence[str], claims: Sequence[Claim]) -> bool:
    signed = {claim.signer for claim in claims}
    return signed == set(signers) and len({claim.image_id for claim in claims}) == 1


def is_newer(version: str, than: str) -> bool:
    """Semantically; False when either is no semantic version."""
    a, b = parse_version(version), parse_version(than)
    return a is not None and b is not None and a > b
