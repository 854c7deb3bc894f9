"""A file's data at this moment, in memory: copied while its writer stands still, looked at when it runs again."""

import errno
import mmap
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path

from bot.checkpoint.manifest import CHUNK_BYTES
from bot.checkpoint.packer import Snapshot

_THREADS, _LEAST_BYTES = 2, 8 << 20


def scan(path: Path, name: str, about: bytes = b"") -> Snapshot:
    """Holes are skipped; what was preallocated and never written is a hole on tmpfs. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        parts = [
            (begin, _read(descriptor, begin, end)) for begin, end in _extents(descriptor, size)
        ]
    finally:
        os.close(descriptor)
    return Snapshot(name, size, tuple(parts), about)


def _extents(descriptor: int, size: int) -> list[tuple[int, int]]:
    """Where data is, in whole chunks, each chunk once."""
    found: list[tuple[int, int]] = []
    end = 0
    while end < size:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        begin -= begin % CHUNK_BYTES
        end = min(size, end + -end % CHUNK_BYTES)
        if found and begin <= found[-1][1]:
            begin = found.pop()[0]
        found.append((begin, end))
    return found


def _read(descriptor: int, begin: int, end: int) -> memoryview:
    # Fresh pages cost more than the copying: fewer of them by mmap than by bytearray, and two threads share them.
    buffer = memoryview(mmap.mmap(-1, end - begin))
    cuts = [*range(0, len(buffer), max(_LEAST_BYTES, -(-len(buffer) // _THREADS))), len(buffer)]
    pieces = [(begin + at, buffer[at:to]) for at, to in pairwise(cuts)]
    if len(pieces) == 1:
        _fill(descriptor, *pieces[0])
    else:
        with ThreadPoolExecutor(_THREADS) as threads:
            for done in [threads.submit(_fill, descriptor, *piece) for piece in pieces]:
                done.result()
    return buffer


def _fill(descriptor: int, begin: int, piece: memoryview) -> None:
    done = 0
    while done < len(piece):
        size = os.preadv(descriptor, [piece[done:]], begin + done)
        if size == 0:
            raise OSError(errno.EIO, "the file became shorter while it was read")
        done += size


def scan_database(path: Path, name: str) -> Snapshot:
    """A SQLite database at one moment, while others write to it. Raises `sqlite3.Error`."""
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(":memory:")) as copy,
    ):
        # In one step: one that pauses would begin anew with every write of another connection.
        source.backup(copy, pages=-1)
        raw = copy.serialize()
    return Snapshot(name, len(raw), ((0, raw),))
