"""A ramdisk as it lies in an image: an archive of files, plain or packed with zstd. The kernel unpacks them one after another.

Packed ones end on a multiple of four bytes: the kernel looks for the next archive there.
"""

from collections.abc import Iterable

from backports import zstd

from bot.image.cpio import BadCpio, Entry, decode_cpio_untrusted, encode_cpio

LEVEL = 12
MOST_UNPACKED_BYTES = 1 << 30
_ZSTD = b"\x28\xb5\x2f\xfd"
_PIECE = 1 << 20


def encode_ramdisk(entries: Iterable[Entry], time: int, *, packed: bool) -> bytes:
    """Raises `BadCpio`."""
    plain = b"".join(encode_cpio(entries, time))
    raw = zstd.compress(plain, level=LEVEL) if packed else plain
    return raw + bytes(-len(raw) % 4)


def decode_ramdisk_untrusted(raw: bytes) -> tuple[Entry, ...]:
    """Raises `BadCpio`."""
    return decode_cpio_untrusted(_unpacked(raw) if raw.startswith(_ZSTD) else raw)


def _unpacked(raw: bytes) -> bytes:
    decompressor, found = zstd.ZstdDecompressor(), bytearray()
    data = raw
    try:
        while not decompressor.eof:
            found += decompressor.decompress(data, _PIECE)
            data = b""
            if len(found) > MOST_UNPACKED_BYTES:
                raise BadCpio(f"a ramdisk unpacks to more than {MOST_UNPACKED_BYTES} bytes")
            if decompressor.needs_input and not decompressor.eof:
                raise BadCpio("a ramdisk is cut")
    except zstd.ZstdError as error:
        raise BadCpio(f"a ramdisk cannot be unpacked: {error}") from error
    if len(decompressor.unused_data) > 3 or any(decompressor.unused_data):
        raise BadCpio("something follows the end of a ramdisk")
    return bytes(found)
