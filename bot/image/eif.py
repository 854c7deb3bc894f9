"""AWS's Enclave Image Format, version 4. Strict: one layout is written, and no other is read.

All numbers are big-endian. A header of 548 bytes, then sections one after another, without gaps: each has a header of 12 bytes,
which the offsets point to and the sizes do not count. The CRC covers everything but itself.
(github.com/aws/aws-nitro-enclaves-image-format; QEMU's hw/core/eif.c reads the same.)
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from nips.errors import BadInput

MAGIC, VERSION = b".eif", 4
MOST_SECTIONS = 32
# Of each section; a ramdisk is the largest.
MOST_BYTES = 1 << 30
_HEADER = struct.Struct(">4sHHQQHH32Q32QII")
_SECTION = struct.Struct(">HHQ")
_CRC_AT = _HEADER.size - 4
_ARM64 = 1


class BadEif(BadInput):
    """Not an enclave image that we would write."""


class Kind(IntEnum):
    """Of a section."""

    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


_KINDS = frozenset(map(int, Kind))


@dataclass(frozen=True)
class Eif:
    """``ramdisks``: the first holds init, the others all else. ``metadata`` (JSON), ``signature`` and the defaults are not
    measured by anybody. ``default_memory_bytes``, ``default_cpus``: for who starts it without saying how much."""

    kernel: bytes
    cmdline: bytes
    ramdisks: tuple[bytes, ...]
    metadata: bytes = b"{}"
    signature: bytes | None = None
    default_memory_bytes: int = 1 << 30
    default_cpus: int = 2

    def sections(self) -> list[tuple[Kind, bytes]]:
        """In the order in which they are written."""
        found = [(Kind.KERNEL, self.kernel), (Kind.CMDLINE, self.cmdline)]
        found.append((Kind.METADATA, self.metadata))
        found += [(Kind.RAMDISK, ramdisk) for ramdisk in self.ramdisks]
        return found + ([(Kind.SIGNATURE, self.signature)] if self.signature is not None else [])


def encode_eif(eif: Eif) -> bytes:
    """Raises `BadEif` for what would not be read again."""
    sections = eif.sections()
    if not eif.ramdisks or len(sections) > MOST_SECTIONS:
        raise BadEif("an image has at least one ramdisk, and at most 32 sections")
    offsets, at = list[int](), _HEADER.size
    for _, data in sections:
        offsets.append(at)
        at += _SECTION.size + len(data)
    header = _HEADER.pack(
        MAGIC, VERSION, 0, eif.default_memory_bytes, eif.default_cpus, 0, len(sections),
        *_table(offsets), *_table([len(data) for _, data in sections]), 0, 0,
    )  # fmt: skip
    body = [part for kind, data in sections for part in (_SECTION.pack(kind, 0, len(data)), data)]
    return b"".join([header[:_CRC_AT], _crc([header[:_CRC_AT], *body]).to_bytes(4, "big"), *body])


def decode_eif_untrusted(raw: bytes) -> Eif:
    """Raises `BadEif`."""
    if len(raw) < _HEADER.size:
        raise BadEif("an image has a header of 548 bytes")
    magic, version, flags, memory, cpus, reserved, count, *rest = _HEADER.unpack_from(raw)
    if (magic, version) != (MAGIC, VERSION):
        raise BadEif("not an enclave image of version 4")
    if flags & ~_ARM64 or reserved or rest[64]:
        raise BadEif("an image sets bits that mean nothing")
    if flags:
        raise BadEif("an image for another processor")
    sections = _sections(raw, count, rest[:32], rest[32:64])
    if _crc([raw[:_CRC_AT], raw[_HEADER.size :]]) != rest[65]:
        raise BadEif("the checksum does not match")
    return _of_sections(sections, memory, cpus)


def _sections(
    raw: bytes, count: int, offsets: Sequence[int], sizes: Sequence[int]
) -> list[tuple[Kind, bytes]]:
    if not 0 < count <= MOST_SECTIONS or any(offsets[count:]) or any(sizes[count:]):
        raise BadEif("an image has 1 to 32 sections")
    found, at = list[tuple[Kind, bytes]](), _HEADER.size
    for offset, size in zip(offsets[:count], sizes[:count], strict=True):
        begin = at + _SECTION.size
        if offset != at or size > MOST_BYTES or begin + size > len(raw):
            raise BadEif("sections follow one another, and end with the file")
        kind, flags, told = _SECTION.unpack_from(raw, at)
        if flags or told != size or kind not in _KINDS:
            raise BadEif("a section's header does not agree with the table")
        found.append((Kind(kind), raw[begin : begin + size]))
        at = begin + size
    if at != len(raw):
        raise BadEif("something follows the last section")
    return found


def _of_sections(sections: Sequence[tuple[Kind, bytes]], memory: int, cpus: int) -> Eif:
    of = {kind: [data for found, data in sections if found is kind] for kind in Kind}
    if len(of[Kind.KERNEL]) != 1 or len(of[Kind.CMDLINE]) != 1 or len(of[Kind.METADATA]) != 1:
        raise BadEif("an image has one kernel, one command line and its metadata")
    if not of[Kind.RAMDISK] or len(of[Kind.SIGNATURE]) > 1:
        raise BadEif("an image has ramdisks, and one signature at most")
    eif = Eif(
        of[Kind.KERNEL][0], of[Kind.CMDLINE][0], tuple(of[Kind.RAMDISK]), of[Kind.METADATA][0],
        next(iter(of[Kind.SIGNATURE]), None), memory, cpus,
    )  # fmt: skip
    # What is measured has no separators: in another order, the same bytes could mean another thing.
    if eif.sections() != list(sections):
        raise BadEif("the sections are not in their order")
    return eif


def _table(values: Sequence[int]) -> list[int]:
    return [*values, *[0] * (MOST_SECTIONS - len(values))]


def _crc(parts: Sequence[bytes]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc
