"""What a checkpoint holds, as values and as bytes. All numbers big-endian; `docs/checkpoint.md` draws it.

manifest ─ entry (a file) ─ index ─ ref ─ chunk
         └ predecessor's digest

An index lies in a pack like any chunk, so a file that did not change costs its line in the manifest.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bot.checkpoint.seal import ID_BYTES, NAME_BYTES, BadCheckpoint

VERSION = 1
CHUNK_BYTES = 65_536
MAX_NAME_BYTES, MAX_ABOUT_BYTES, MAX_SECRET_BYTES = 255, 65_536, 65_536
MAX_ENTRIES, MAX_CHUNKS, MAX_PACKS = 10_000, 1 << 20, 100_000
MAX_MANIFEST_BYTES = 32 << 20
MAX_INDEX_BYTES = 64 << 20
# A pack is closed when it has `packer.PACK_BYTES`; an index may be the last that comes into it.
MAX_PACK_BYTES = MAX_INDEX_BYTES + (16 << 20)

_HEAD = struct.Struct(">BQQ32sQ")
_PACK = struct.Struct(f">{NAME_BYTES}sI")
_REF = struct.Struct(f">{NAME_BYTES}sII{ID_BYTES}s")
_ROW = struct.Struct(f">IIII{ID_BYTES}s")


@dataclass(frozen=True, slots=True)
class Ref:
    """Where some bytes lie: in which pack, from where, how many of them (unsealed), and their name."""

    pack: bytes
    offset: int
    length: int
    chunk_id: bytes


@dataclass(frozen=True)
class Entry:
    """A file. What is not in its index is zero. ``about``: for whoever restores it, as it likes."""

    name: str
    size: int
    index: Ref
    about: bytes = b""


@dataclass(frozen=True)
class Manifest:
    """One checkpoint. ``predecessor`` is the digest of the manifest that it follows, 32 zero bytes for the first.
    ``secret``: what opens only with this, our identity among it; it cannot be printed."""

    epoch: int
    number: int
    predecessor: bytes
    created_at: int
    entries: tuple[Entry, ...]
    # Every pack that is needed, and how many bytes it has.
    packs: Mapping[bytes, int]
    secret: bytes = field(default=b"", repr=False)


Index = dict[int, Ref]
"""Chunk's number in its file → where it lies."""


def encode_manifest(manifest: Manifest) -> bytes:
    """Raises ValueError for what `decode_manifest_untrusted` would refuse."""
    if len(manifest.entries) > MAX_ENTRIES or len(manifest.packs) > MAX_PACKS:
        raise ValueError("too many files or packs for a manifest")
    if len(manifest.secret) > MAX_SECRET_BYTES:
        raise ValueError("too much of a secret for a manifest")
    return b"".join(
        [
            _HEAD.pack(VERSION, manifest.epoch, manifest.number, manifest.predecessor, manifest.created_at),
            len(manifest.secret).to_bytes(4, "big"), manifest.secret,
            len(manifest.packs).to_bytes(4, "big"),
            *(_PACK.pack(name, size) for name, size in manifest.packs.items()),
            len(manifest.entries).to_bytes(4, "big"), *map(_encode_entry, manifest.entries),
        ]
    )  # fmt: skip


def _encode_entry(entry: Entry) -> bytes:
    name = entry.name.encode()
    if not 0 < len(name) <= MAX_NAME_BYTES or len(entry.about) > MAX_ABOUT_BYTES:
        raise ValueError(f"{entry.name[:40]!r} is too long for a manifest")
    return b"".join([
        len(name).to_bytes(1, "big"), name, entry.size.to_bytes(8, "big"), _encode_ref(entry.index),
        len(entry.about).to_bytes(4, "big"), entry.about,
    ])  # fmt: skip


def _encode_ref(ref: Ref) -> bytes:
    return _REF.pack(ref.pack, ref.offset, ref.length, ref.chunk_id)


def decode_manifest_untrusted(body: bytes) -> Manifest:
    """Raises `BadCheckpoint`."""
    rest = _Rest(body)
    version, epoch, number, predecessor, created_at = _HEAD.unpack(rest.take(_HEAD.size))
    if version != VERSION:
        raise BadCheckpoint(f"a manifest of version {version}; this program reads {VERSION}")
    secret = rest.take(rest.number(4, MAX_SECRET_BYTES))
    packs = dict(_PACK.unpack(rest.take(_PACK.size)) for _ in range(rest.number(4, MAX_PACKS)))
    entries = tuple(_decode_entry(rest) for _ in range(rest.number(4, MAX_ENTRIES)))
    rest.end()
    if any(size > MAX_PACK_BYTES for size in packs.values()):
        raise BadCheckpoint("a pack is too large")
    if len({entry.name for entry in entries}) != len(entries):
        raise BadCheckpoint("a manifest names a file twice")
    return Manifest(epoch, number, predecessor, created_at, entries, packs, secret)


def _decode_entry(rest: "_Rest") -> Entry:
    try:
        name = rest.take(rest.number(1, MAX_NAME_BYTES)).decode()
    except UnicodeDecodeError:
        raise BadCheckpoint("a file's name is not UTF-8") from None
    size = rest.number(8, CHUNK_BYTES * MAX_CHUNKS)
    ref = Ref(*_REF.unpack(rest.take(_REF.size)))
    if ref.length > MAX_INDEX_BYTES:
        raise BadCheckpoint("an index is too long")
    return Entry(name, size, ref, rest.take(rest.number(4, MAX_ABOUT_BYTES)))


def encode_index(index: Index) -> bytes:
    """Names of packs once, then a row for each chunk."""
    packs = {name: at for at, name in enumerate(dict.fromkeys(ref.pack for ref in index.values()))}
    rows = (
        _ROW.pack(number, packs[ref.pack], ref.offset, ref.length, ref.chunk_id)
        for number, ref in sorted(index.items())
    )
    return b"".join([len(packs).to_bytes(4, "big"), *packs, *rows])


def decode_index_untrusted(raw: bytes, size: int) -> Index:
    """The index of a file of ``size`` bytes. Raises `BadCheckpoint`."""
    rest = _Rest(raw)
    packs = [rest.take(NAME_BYTES) for _ in range(rest.number(4, MAX_CHUNKS))]
    index = dict(_decode_rows(rest.all(), packs))
    for number, ref in index.items():
        if ref.length > CHUNK_BYTES or number * CHUNK_BYTES + ref.length > size:
            raise BadCheckpoint("a chunk reaches beyond its file")
    return index


def _decode_rows(raw: bytes, packs: list[bytes]) -> Iterator[tuple[int, Ref]]:
    if len(raw) % _ROW.size:
        raise BadCheckpoint("an index ends in the middle of a row")
    before = -1
    for number, pack, offset, length, chunk_id in _ROW.iter_unpack(raw):
        if number <= before or pack >= len(packs):
            raise BadCheckpoint("the rows of an index contradict each other")
        before = number
        yield number, Ref(packs[pack], offset, length, chunk_id)


class _Rest:
    """What is left to read. Raises `BadCheckpoint` where it is too short."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def take(self, size: int) -> bytes:
        taken = self._raw[self._at : self._at + size]
        if len(taken) != size:
            raise BadCheckpoint("it ends too early")
        self._at += size
        return taken

    def number(self, size: int, most: int) -> int:
        value = int.from_bytes(self.take(size), "big")
        if value > most:
            raise BadCheckpoint(f"{value} where at most {most} can be")
        return value

    def all(self) -> bytes:
        return self.take(len(self._raw) - self._at)

    def end(self) -> None:
        if self._at != len(self._raw):
            raise BadCheckpoint("something follows its end")
