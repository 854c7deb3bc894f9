"""What a layer's tar will take on the disk, known while it streams past. Pure.

An archive lies in two ways that its length does not show: sparse entries name gigabytes in a few bytes, and
tiny entries cost a block or an inode each. Whoever unpacks it believes its headers, so they are read as the
engine reads them (Go's archive/tar), and what could be read in two ways is refused.
"""

BLOCK = 512
DISK_BLOCK_BYTES = 4_096
INODE_BYTES = 256
MAX_EXTENDED_BYTES = 1 << 20
# Entries without content, whatever size they claim: links, devices, folders, pipes.
_HEADER_ONLY = frozenset(b"123456")
_FILES = frozenset(b"\x0007")
_NAMES = frozenset(b"LK")
_SPARSE = "a layer has sparse files, which would grow when unpacked"


class BadTar(Exception):
    """No tar, or one that is not meant well; the message says why."""


class TarScan:
    """`feed` it the archive in order; ``disk_bytes`` grows as its headers are seen."""

    def __init__(self) -> None:
        self.disk_bytes = 0
        self._skip = 0  # of an entry's content, padding included
        self._held = bytearray()  # a header, or an extended one, that is not complete yet
        self._wanted = BLOCK
        self._extended = b""  # the type of the extended header that is being held
        self._size: int | None = None  # what an extended header says of the next entry
        self._is_extended = False
        self._is_over = False

    def feed(self, data: bytes) -> None:
        """Raises `BadTar`."""
        view, at = memoryview(data), 0
        while at < len(view):
            if self._skip:
                step = min(self._skip, len(view) - at)
                self._skip -= step
            else:
                step = min(self._wanted - len(self._held), len(view) - at)
                self._held += view[at : at + step]
                if len(self._held) == self._wanted:
                    self._complete()
            at += step

    def end(self) -> None:
        """Raises `BadTar` when the archive stops within an entry."""
        if self._skip or self._held or self._extended:
            raise BadTar("a layer's archive is cut off")

    def _complete(self) -> None:
        held, self._held, self._wanted = bytes(self._held), bytearray(), BLOCK
        if self._extended:
            self._take_extended(held)
        elif not self._is_over:
            self._take_header(held)

    def _take_header(self, header: bytes) -> None:
        if header == bytes(BLOCK):
            self._is_over = (
                True  # the engine reads no further; neither does it unpack what follows
            )
            return
        if _number(header[148:156]) not in _checksums(header):
            raise BadTar("a layer is no tar archive")
        kind, size = header[156], _number(header[124:136])
        if size is None:
            raise BadTar("a layer's archive has an entry without a size")
        if kind in b"xgLK":
            self._expect_extended(header[156:157], size)
        else:
            if kind == 0 and header[:100].rstrip(b"\x00").endswith(b"/"):
                kind = ord("5")  # long ago, a folder was a file whose name ends so
            self._count(kind, size if self._size is None else self._size)
            self._size, self._is_extended = None, False

    def _expect_extended(self, kind: bytes, size: int) -> None:
        if size > MAX_EXTENDED_BYTES:
            raise BadTar("a layer's archive has an extended header that is too large")
        if size:
            self._extended, self._wanted = kind, _padded(size, BLOCK)
            self._length = size

    def _take_extended(self, held: bytes) -> None:
        kind, self._extended, self._is_extended = self._extended, b"", True
        if kind[0] in _NAMES:
            return
        records = _records(held[: self._length])
        if any(name.startswith(b"GNU.sparse") for name in records):
            raise BadTar(_SPARSE)
        size = records.get(b"size")
        if size is not None and (kind == b"g" or not size.isdigit() or len(size) > 19):
            raise BadTar("a layer's archive has an extended header that is malformed")
        if kind == b"x":  # another one before it is forgotten
            self._size = int(size) if size is not None else None

    def _count(self, kind: int, size: int) -> None:
        if kind in _HEADER_ONLY:
            self.disk_bytes += DISK_BLOCK_BYTES if kind == ord("5") else INODE_BYTES
            return
        if kind == ord("S"):
            raise BadTar(_SPARSE)
        # Of the oldest type, an extended header may name a folder: then its size would mean nothing.
        if kind not in _FILES or (kind == 0 and self._is_extended):
            raise BadTar(
                f"a layer's archive has an entry of a type that is not known here ({kind})"
            )
        self.disk_bytes += INODE_BYTES + _padded(size, DISK_BLOCK_BYTES)
        self._skip = _padded(size, BLOCK)


def _padded(size: int, block: int) -> int:
    return -(-size // block) * block


def _number(field: bytes) -> int | None:
    """Octal digits, or big-endian binary with the highest bit set (GNU). None when it is neither, or negative."""
    if field[0] & 0x80:
        return None if field[0] & 0x40 else int.from_bytes(bytes([field[0] & 0x3F]) + field[1:])
    digits = field.strip(b" \x00")
    if not digits:
        return 0
    return int(digits, 8) if all(c in b"01234567" for c in digits) else None


def _checksums(header: bytes) -> tuple[int, int]:
    """Both ways in which the sum over a header has been taken: of unsigned and of signed bytes."""
    blank = header[:148] + b" " * 8 + header[156:]
    unsigned = sum(blank)
    return unsigned, unsigned - 256 * sum(byte > 127 for byte in blank)


def _records(content: bytes) -> dict[bytes, bytes]:
    """``length name=value newline``, again and again (POSIX pax)."""
    found: dict[bytes, bytes] = {}
    while content:
        length, space, _ = content.partition(b" ")
        end = int(length) if space and length.isdigit() and len(length) <= 7 else 0
        record = content[len(length) + 1 : end]
        name, equals, value = record.partition(b"=")
        if end > len(content) or not equals or not value.endswith(b"\n"):
            raise BadTar("a layer's archive has an extended header that is malformed")
        found[name] = value[:-1]
        content = content[end:]
    return found
