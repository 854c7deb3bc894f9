"""What two images differ in: which of the parts that are measured, and in them which files."""

import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

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
        ("signature", one.signature, other.signature, ()),
    ):
        if before != after:
            yield Difference(where, "changed", pcrs)
    if len(one.ramdisks) != len(other.ramdisks):
        told = f"{len(one.ramdisks)} before, {len(other.ramdisks)} now"
        yield Difference("ramdisks", told, (0, 2))
    for number, (before, after) in enumerate(zip(one.ramdisks, other.ramdisks, strict=False)):
        if before != after:
            yield from _in_ramdisk(number, before, after)


def _in_ramdisk(number: int, before: bytes, after: bytes) -> Iterator[Difference]:
    pcrs, found = (0, 1) if number == 0 else (0, 2), False
    for path, what in file_differences(*map(decode_ramdisk_untrusted, (before, after))):
        found = True
        yield Difference(f"ramdisk {number + 1}, {path}", what, pcrs)
    if not found:
        yield Difference(f"ramdisk {number + 1}", "the same files, written otherwise", pcrs)


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
