"""What two images differ in: which of the parts that are measured, and in them which files."""

import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from bot.image.cpio import Entry
from bot.image.eif import Eif
from bot.image.ramdisk import decode_ramdisk_untrusted


@dataclass(frozen=True)
class Difference:
    """``where``: the part of the image, or a path in a ramdisk. ``pcrs``: the registers that change with it."""

    where: str
    what: str
    pcrs: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.where}: {self.what} (PCR {', '.join(map(str, self.pcrs)) or 'none'})"


def differences(one: Eif, other: Eif) -> Iterator[Difference]:
    """From the first to the second. Raises `BadCpio` for ramdisks that cannot be read."""
    for where, before, after, pcrs in (
        ("kernel", one.kernel, other.kernel, (0, 1)),
        ("command line", one.cmdline, other.cmdline, (0, 1)),
        ("metadata", one.metadata, other.metadata, ()),
        ("signature", one.signature, other.signature, (8,)),
        ("default memory", one.default_memory_bytes, other.default_memory_bytes, ()),
        ("default CPUs", one.default_cpus, other.default_cpus, ()),
    ):
        if before != after:
            yield Difference(where, "changed", pcrs)
    pairs = zip_longest(one.ramdisks, other.ramdisks)
    for number, (before, after) in enumerate(pairs):
        if before != after:
            yield from _in_ramdisk(number, before, after)


def _in_ramdisk(number: int, before: bytes | None, after: bytes | None) -> Iterator[Difference]:
    """None: there is none of that number."""
    pcrs, where, found = (0, 1) if number == 0 else (0, 2), f"ramdisk {number + 1}", False
    if before is None or after is None:
        found = True
        yield Difference(where, "is new" if before is None else "is gone", pcrs)
    files = (decode_ramdisk_untrusted(raw) if raw is not None else () for raw in (before, after))
    for path, what in file_differences(*files):
        found = True
        yield Difference(f"{where}, {path}", what, pcrs)
    if not found:
        yield Difference(where, "the same files, written otherwise", pcrs)


def file_differences(before: Iterable[Entry], after: Iterable[Entry]) -> Iterator[tuple[str, str]]:
    """Path, and what happened to it."""
    old, new = ({entry.path: entry for entry in entries} for entries in (before, after))
    for path in sorted(old.keys() | new.keys()):
        if what := _what(old.get(path), new.get(path)):
            yield path.decode(errors="backslashreplace"), what


def _what(old: Entry | None, new: Entry | None) -> str:
    if old is None or new is None:
        return "is new" if old is None else "is gone"
    told: Sequence[tuple[bool, str]] = (
        (stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode), "is another kind of thing"),
        (old.content != new.content, f"content, {len(old.content)} bytes before, {len(new.content)} now"),
        (stat.S_IMODE(old.mode) != stat.S_IMODE(new.mode),
         f"mode {stat.S_IMODE(old.mode):o} before, {stat.S_IMODE(new.mode):o} now"),
        ((old.uid, old.gid) != (new.uid, new.gid), "owner"),
    )  # fmt: skip
    return "; ".join(text for is_so, text in told if is_so)
