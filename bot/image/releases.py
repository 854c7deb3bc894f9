"""What each release measures, as it stands in the repository (``build/pcrs.json``). Pure.

A released version is never built twice differently: sources that carry its version must measure what stands there. Between two
releases the version is one of development, and nothing is pinned.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nips.errors import BadInput

MEASURED = (0, 1, 2)
MOST_BYTES = 1 << 20
_VERSION = re.compile(r"\d{1,4}\.\d{1,4}\.\d{1,4}")
_PCR = re.compile(r"[0-9a-f]{96}")


class BadReleases(BadInput):
    """Not a list of releases as we keep it."""


@dataclass(frozen=True)
class Release:
    """``pcrs``: of the image with the repository's own layer, as hex."""

    version: str
    pcrs: Mapping[int, str]


def decode_releases_untrusted(text: str) -> tuple[Release, ...]:
    """The newest one last. Raises `BadReleases`."""
    if len(text) > MOST_BYTES:
        raise BadReleases(f"a list of releases has at most {MOST_BYTES} characters")
    try:
        match json.loads(text):
            case {"releases": list(entries), **rest} if not rest:
                return tuple(map(_release, entries))
            case _:
                pass
    except (ValueError, RecursionError) as error:
        raise BadReleases(f"the list of releases cannot be read: {error}") from error
    raise BadReleases("the list of releases has another shape")


def _release(raw: object) -> Release:
    names = {f"PCR{index}": index for index in MEASURED}
    if isinstance(raw, dict) and raw.keys() == {"version", *names}:
        texts = [raw[name] for name in names]
        is_whole = isinstance(raw["version"], str) and _VERSION.fullmatch(raw["version"])
        if is_whole and all(isinstance(text, str) and _PCR.fullmatch(text) for text in texts):
            return Release(raw["version"], {index: raw[name] for name, index in names.items()})
    raise BadReleases("a release has a version like 1.2.3, and PCR0, 1 and 2 of 96 hex digits")


def why_not_released(
    version: str, pcrs: Mapping[int, bytes], releases: Sequence[Release]
) -> str | None:
    """Why sources of this version, which measure this, may not go on under it; None when they may."""
    if not _VERSION.fullmatch(version):
        return None
    found = [release for release in releases if release.version == version]
    if not found:
        return f"{version} is no release yet: enter it into build/pcrs.json, or work on as {version}-dev"
    if wrong := [
        f"PCR{index}" for index in MEASURED if found[-1].pcrs[index] != pcrs[index].hex()
    ]:
        return (
            f"these sources carry the version {version}, and are not what was released as that ({', '.join(wrong)}): "
            "give them the next version, with -dev, in pyproject.toml"
        )
    return None
