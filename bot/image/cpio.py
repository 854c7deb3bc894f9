"""A ramdisk's files, in cpio's "newc" format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).

One layout: paths in order, folders before what is in them, no hard links, one time for all. So the same files are the same
bytes. Names are counted in bytes: by characters, one certificate authority's "ő" makes the kernel stop unpacking there.
"""

import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nips.errors import BadInput

MAGIC, TRAILER = b"070701", b"TRAILER!!!"
MOST_ENTRIES, MOST_PATH_BYTES = 50_000, 1_024
_LAST = (0, 0, 0, 0, 1, 0)
_NUMBERS = re.compile(rb"(?:[0-9a-f]{8}){13}")
_FIELDS = 13
_HEAD = len(MAGIC) + 8 * _FIELDS
_KINDS = frozenset([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK])


class BadCpio(BadInput):
    """Not a ramdisk that we would write."""


@dataclass(frozen=True)
class Entry:
    """``mode`` with the type; ``content``: a file's bytes, or where a link leads."""

    path: bytes
    mode: int
    content: bytes = b""
    uid: int = 0
    gid: int = 0


def encode_cpio(entries: Iterable[Entry], time: int) -> Iterator[bytes]:
    """In pieces; ``time``: of all files, Unix seconds. Raises `BadCpio` for what would not be read again."""
    if not 0 <= time < 1 << 32:
        raise BadCpio("a time has 32 bits")
    before = b""
    for number, entry in enumerate(sorted(entries, key=lambda entry: entry.path), start=1):
        _check(entry, before)
        before = entry.path
        yield _one(number, entry, time)
    yield _packed(TRAILER, _LAST, b"")


def decode_cpio_untrusted(raw: bytes) -> tuple[Entry, ...]:
    """Raises `BadCpio` for whatever would not be written so: the kernel reads numbers, links and paths otherwise than we would, and
    what it unpacks must be what is shown."""
    found, at, before, time = list[Entry](), 0, b"", None
    while True:
        fields, path, content, after = _unpacked(raw, at)
        if path == TRAILER:
            _must_be(raw[at:after], _packed(TRAILER, _LAST, b""))
            break
        entry = Entry(path, fields[1], content, fields[2], fields[3])
        _check(entry, before)
        time = fields[5] if time is None else time
        _must_be(raw[at:after], _one(len(found) + 1, entry, time))
        before, at = path, after
        found.append(entry)
        if len(found) > MOST_ENTRIES:
            raise BadCpio(f"a ramdisk has more than {MOST_ENTRIES} entries")
    if any(raw[after:]):
        raise BadCpio("something follows the end of a ramdisk")
    return tuple(found)


def _must_be(read: bytes, written: bytes) -> None:
    if read != written:
        raise BadCpio("an entry is not written as we write it")


def _one(number: int, entry: Entry, time: int) -> bytes:
    fields = (number, entry.mode, entry.uid, entry.gid, 1, time)
    return _packed(entry.path, fields, entry.content)


def _check(entry: Entry, before: bytes) -> None:
    parts = entry.path.split(b"/")
    if not 0 < len(entry.path) <= MOST_PATH_BYTES or b"\0" in entry.path or entry.path == TRAILER:
        raise BadCpio("a path is 1 to 1,024 bytes")
    if any(part in (b"", b".", b"..") for part in parts):
        raise BadCpio("a path leads nowhere else than below the root")
    if entry.path <= before:
        raise BadCpio("paths are in order, each once")
    if stat.S_IFMT(entry.mode) not in _KINDS:
        raise BadCpio("a ramdisk has files, folders and links")
    if stat.S_ISDIR(entry.mode) and entry.content:
        raise BadCpio("a folder has no content of its own")


def _packed(path: bytes, fields: tuple[int, ...], content: bytes) -> bytes:
    numbers = (*fields, len(content), 0, 0, 0, 0, len(path) + 1, 0)
    head = MAGIC + b"".join(b"%08x" % number for number in numbers) + path + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _unpacked(raw: bytes, at: int) -> tuple[list[int], bytes, bytes, int]:
    head = raw[at : at + _HEAD]
    if len(head) != _HEAD or not head.startswith(MAGIC):
        raise BadCpio("a ramdisk is cut, or of another format")
    if not _NUMBERS.fullmatch(head, len(MAGIC)):
        raise BadCpio("a header has something else than hexadecimal digits")
    fields = [int(head[n : n + 8], 16) for n in range(len(MAGIC), _HEAD, 8)]
    size, name_size = fields[6], fields[11]
    name_end = at + _HEAD + name_size
    begin = name_end + -(_HEAD + name_size) % 4
    end = begin + size
    after = end + -size % 4
    path = raw[at + _HEAD : name_end]
    if not 1 < name_size <= MOST_PATH_BYTES + 1 or after > len(raw) or not path.endswith(b"\0"):
        raise BadCpio("an entry is cut")
    if any(raw[name_end:begin]) or any(raw[end:after]):
        raise BadCpio("an entry is filled up with something else than zeros")
    return fields, path[:-1], raw[begin:end], after
