"""What an image is made of, exactly: every package and wheel with its hash, and the time of the archive it was found in. Pure.

One line for each, in order, so that a renewal reads as what it is: this version instead of that one.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TypeVar

from nips.errors import BadInput

MOST_BYTES, MOST_ENTRIES = 4 << 20, 5_000
MOST_PACKAGE_BYTES = 1 << 30
ARCHIVES = ("debian", "debian-security")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUITE = re.compile(r"[a-z]{3,20}")
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,100}")
_VERSION = re.compile(r"[A-Za-z0-9.+~:-]{1,100}")
_PATH = re.compile(r"pool/(updates/)?main(/[A-Za-z0-9][A-Za-z0-9.+~_-]*){3}")
_WHEEL = re.compile(r"[A-Za-z0-9._]+-[A-Za-z0-9._!+]+(-[A-Za-z0-9._]+){3,4}\.whl")
T = TypeVar("T")


class BadLock(BadInput):
    """Not a lock that we would write."""


@dataclass(frozen=True)
class Package:
    """A Debian package. ``path``: in the archive, one of `ARCHIVES`."""

    name: str
    version: str
    arch: str
    archive: str
    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        _must(bool(_NAME.fullmatch(self.name)), "a package's name")
        _must(bool(_VERSION.fullmatch(self.version)), f"the version of {self.name}")
        _must(self.arch in ("amd64", "all"), f"the architecture of {self.name}")
        _must(self.archive in ARCHIVES, f"the archive of {self.name}")
        _must(bool(_PATH.fullmatch(self.path)), f"the path of {self.name}")
        _must(
            type(self.size) is int and 0 < self.size <= MOST_PACKAGE_BYTES, f"size of {self.name}"
        )
        _must(bool(_SHA256.fullmatch(self.sha256)), f"the sha256 of {self.name}")

    @property
    def file(self) -> str:
        """Its name alone."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Wheel:
    """A Python package, built."""

    file: str
    sha256: str

    def __post_init__(self) -> None:
        _must(bool(_WHEEL.fullmatch(self.file)), "a wheel's name")
        _must(bool(_SHA256.fullmatch(self.sha256)), f"the sha256 of {self.file}")

    @property
    def name(self) -> str:
        return self.file.split("-")[0]

    @property
    def version(self) -> str:
        return self.file.split("-")[1]


@dataclass(frozen=True)
class Lock:
    """``time``: of the archive; it is also that of every file in the image. ``root``: what is installed there; ``kernel``: its
    image and modules; ``tools``: what one of its modules is built with."""

    time: datetime
    suite: str
    root: tuple[Package, ...]
    kernel: tuple[Package, ...]
    tools: tuple[Package, ...]
    wheels: tuple[Wheel, ...]

    def __post_init__(self) -> None:
        _must(bool(_SUITE.fullmatch(self.suite)), "the suite")
        _must(2020 <= self.time.year < 2100, "the time")
        for entries in (self.root, (*self.kernel, *self.tools), self.wheels):
            names = [entry.name for entry in entries]
            _must(len(names) == len(set(names)), "a package that is named twice")

    @property
    def epoch_s(self) -> int:
        """``SOURCE_DATE_EPOCH``."""
        return int(self.time.timestamp())

    @property
    def packages(self) -> tuple[Package, ...]:
        """Of all three kinds."""
        return (*self.root, *self.kernel, *self.tools)


def encode_lock(lock: Lock) -> str:
    """JSON, a line for each package."""
    lists = {name: getattr(lock, name) for name in ("root", "kernel", "tools", "wheels")}
    head = {"time": lock.time.strftime("%Y-%m-%dT%H:%M:%SZ"), "suite": lock.suite}
    told = [f'  "{name}": {json.dumps(value)}' for name, value in head.items()]
    told += [f'  "{name}": [\n{_lines(entries)}\n  ]' for name, entries in lists.items()]
    return "{\n" + ",\n".join(told) + "\n}\n"


def _lines(entries: Sequence[Package | Wheel]) -> str:
    return ",\n".join(f"    {json.dumps(asdict(entry))}" for entry in entries)


def decode_lock_untrusted(text: str) -> Lock:
    """Raises `BadLock`."""
    if len(text) > MOST_BYTES:
        raise BadLock(f"a lock has at most {MOST_BYTES} characters")
    try:
        raw = json.loads(text)
        match raw:
            case {"time": str(time), "suite": str(suite), **lists} if len(lists) == 4:
                found = {
                    name: tuple(_entries(lists[name], Package))
                    for name in ("root", "kernel", "tools")
                }
                wheels = tuple(_entries(lists["wheels"], Wheel))
                return Lock(_time(time), suite, **found, wheels=wheels)
            case _:
                pass
    except BadLock:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadLock(f"the lock cannot be read: {error}") from error
    raise BadLock("the lock has another shape")


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _entries(raw: object, kind: type[T]) -> Iterator[T]:
    _must(isinstance(raw, list) and 0 < len(raw) <= MOST_ENTRIES, "a list of packages")
    assert isinstance(raw, list)  # noqa: S101 - for mypy
    for entry in raw:
        _must(isinstance(entry, dict), "a package")
        _must(not isinstance(entry, dict) or all(map(_is_plain, entry.values())), "a package")
        yield kind(**entry)


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int)


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise BadLock(f"{what} is not as a lock has it")


def lock_differences(one: Lock, other: Lock) -> Iterator[str]:
    """What a renewal changes, a line each."""
    for where in ("root", "kernel", "tools", "wheels"):
        old, new = _versions(getattr(one, where)), _versions(getattr(other, where))
        for name in sorted(old.keys() | new.keys()):
            before, now = old.get(name), new.get(name)
            if before != now:
                yield f"{where}: {name} {before or 'is new,'}{' → ' if before and now else ' '}{now or 'is gone'}"


def _versions(entries: Sequence[Package | Wheel]) -> Mapping[str, str]:
    return {entry.name: entry.version for entry in entries}
