"""One layer of an image, checked piece by piece while it comes: its digests, and what it unpacks to. Pure.

Of what a stranger compressed never more than a bounded piece is unpacked at once, and unpacking stops as soon
as the image is larger than its share of the disk. Kinds: plain tar, gzip, zstd; anything else is refused,
since the engine would try to unpack it by rules of its own.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from backports import zstd

from bot.adapters.tar_scan import BadTar, TarScan

PIECE_BYTES = 1 << 20
# A part of the input at a time: what follows a member's end is copied, so that must stay small.
SLICE_BYTES = 16 << 10
MAGIC_BYTES = 4
# Some builders make a member for every file (eStargz).
MAX_MEMBERS = 200_000
# 8 MiB, what every decoder should take (RFC 8878, 3.1.1.1.2); `zstd --ultra` would need more.
ZSTD_WINDOW_LOG = 23


class Kind(Enum):
    """How a layer is packed, by its first bytes."""

    TAR = "tar"
    GZIP = "tar.gz"
    ZSTD = "tar.zst"


@dataclass(frozen=True)
class Layer:
    """What the manifest and the config say of it; the two are strangers' words until they were checked."""

    digest: str
    size_bytes: int
    diff_id: str


class BadLayer(Exception):
    """The layer is not what was announced, or would harm; the message says why."""


class TooLarge(BadLayer):
    """Unpacked it is larger than what is left of its disk."""


def kind_of(head: bytes) -> Kind:
    """By magic numbers, as the engine does it; media types lie."""
    if head.startswith(b"\x1f\x8b"):
        return Kind.GZIP
    return Kind.ZSTD if head.startswith(b"\x28\xb5\x2f\xfd") else Kind.TAR


class Unpacker:
    """From packed bytes to pieces of at most `PIECE_BYTES`. Raises `BadLayer`."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._members = 0
        self._stream = self._member()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """All that these bytes unpack to, bit by bit."""
        step = PIECE_BYTES if self._kind is Kind.TAR else SLICE_BYTES
        for start in range(0, len(data), step):
            part = data[start : start + step]
            if self._kind is Kind.TAR:
                yield part
            else:
                yield from self._unpack(part)

    @property
    def is_complete(self) -> bool:
        """Whether what came is the whole, and not cut off."""
        return self._kind is Kind.TAR or bool(self._stream.eof)

    def _unpack(self, rest: bytes) -> Iterator[bytes]:
        try:
            more = True
            while more:
                if self._stream.eof:
                    self._stream = self._member()
                piece = self._stream.decompress(rest, PIECE_BYTES)
                if piece:
                    yield piece
                rest, more = self._left(piece)
        except (zlib.error, zstd.ZstdError, EOFError) as error:
            raise BadLayer(f"a layer cannot be unpacked: {error}") from error

    def _left(self, piece: bytes) -> tuple[bytes, bool]:
        """What is still to be unpacked, and whether anything is."""
        stream = self._stream
        if stream.eof:
            return stream.unused_data, bool(stream.unused_data)
        if isinstance(stream, zstd.ZstdDecompressor):
            return b"", not stream.needs_input
        return stream.unconsumed_tail, bool(stream.unconsumed_tail) or len(piece) == PIECE_BYTES

    def _member(self) -> "zlib._Decompress | zstd.ZstdDecompressor":
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise BadLayer("a layer is packed in too many pieces")
        if self._kind is Kind.ZSTD:
            options = {int(zstd.DecompressionParameter.window_log_max): ZSTD_WINDOW_LOG}
            return zstd.ZstdDecompressor(options=options)
        return zlib.decompressobj(31)


class LayerCheck:
    """`feed` it the packed bytes in order, then ask `end`. ``room_bytes`` is what it may unpack to at most."""

    def __init__(self, layer: Layer, room_bytes: int) -> None:
        self._layer, self._room_bytes = layer, room_bytes
        self._packed, self._plain = hashlib.sha256(), hashlib.sha256()
        self._unpacker: Unpacker | None = None
        self._tar = TarScan()
        self._head = b""
        self.kind = Kind.TAR
        self.packed_bytes = self.unpacked_bytes = 0

    @property
    def disk_bytes(self) -> int:
        """What it will take on the disk, as far as it was seen."""
        return max(self.unpacked_bytes, self._tar.disk_bytes)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Checks and hands out an unpacked piece at each step; the caller decides how long to go on. Raises `BadLayer`."""
        self.packed_bytes += len(data)
        if self.packed_bytes > self._layer.size_bytes:
            raise BadLayer("the registry sends more than the manifest says")
        self._packed.update(data)
        if self._unpacker is None:
            data, self._head = self._head + data, b""
            if len(data) < MAGIC_BYTES:
                self._head = data
                return
            self.kind = kind_of(data)
            self._unpacker = Unpacker(self.kind)
        for piece in self._unpacker.feed(data):
            self._take(piece)
            yield piece

    def end(self) -> None:
        """Raises `BadLayer` unless everything is as announced."""
        if f"sha256:{self._packed.hexdigest()}" != self._layer.digest:
            raise BadLayer("the registry sent something else than the digest names")
        if self._unpacker is None or not self._unpacker.is_complete:
            raise BadLayer("a layer is cut off")
        if f"sha256:{self._plain.hexdigest()}" != self._layer.diff_id:
            raise BadLayer("a layer unpacks to something else than the image's config names")
        try:
            self._tar.end()
        except BadTar as error:
            raise BadLayer(str(error)) from error

    def _take(self, piece: bytes) -> None:
        self.unpacked_bytes += len(piece)
        self._plain.update(piece)
        try:
            self._tar.feed(piece)
        except BadTar as error:
            raise BadLayer(str(error)) from error
        if self.disk_bytes > self._room_bytes:
            raise TooLarge("the image is too large")
