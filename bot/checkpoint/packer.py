"""Chunks become packs: sealed one after another, and each only once as long as somebody refers to it. Pure."""

import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from bot.checkpoint.manifest import CHUNK_BYTES, Entry, Index, Ref, encode_index
from bot.checkpoint.seal import NAME_BYTES, TAG_BYTES, Sealer

PACK_BYTES = 8 << 20
Chunk = tuple[int, bytes | memoryview]
# Chunks are named in batches of some MiB: hashing leaves the interpreter to others meanwhile.
_THREADS, _BATCH = 2, 64


@dataclass(frozen=True)
class Snapshot:
    """A file at one moment. ``parts``: where its data is, each from a multiple of `CHUNK_BYTES`; all else is zero."""

    name: str
    size: int
    parts: tuple[tuple[int, bytes | memoryview], ...]
    about: bytes = b""


@dataclass(frozen=True)
class Pack:
    """``name`` as it stands in a `Ref`; ``parts`` are its bytes, in order."""

    name: bytes
    parts: tuple[bytes, ...]


class Packer:
    """``known``: what lies at the keeper already, by name. It learns what is packed."""

    def __init__(self, sealer: Sealer, known: dict[bytes, Ref]) -> None:
        self._sealer, self._known = sealer, known
        self._begin()

    def _begin(self) -> None:
        self._name = secrets.token_bytes(NAME_BYTES)
        self._cipher = self._sealer.cipher_of(self._name)
        self._parts: list[bytes] = []
        self._size = 0

    def pack(self, snapshots: Iterable[Snapshot]) -> Iterator[Pack | tuple[Entry, Index]]:
        """Packs as they become full, the last one as it is; and each file's entry, before its last pack perhaps."""
        with ThreadPoolExecutor(_THREADS) as threads:
            for snapshot in snapshots:
                index: Index = {}
                for number, chunk, chunk_id in self._named(_chunks(snapshot), threads):
                    index[number] = self._ref(chunk, chunk_id)
                    yield from self._full()
                listed = encode_index(index)
                ref = self._ref(listed, self._sealer.id_of(listed))
                yield Entry(snapshot.name, snapshot.size, ref, snapshot.about), index
                yield from self._full()
        if self._parts:
            yield self._close()

    def _named(
        self, chunks: Iterator[Chunk], threads: Executor
    ) -> Iterator[tuple[int, bytes | memoryview, bytes]]:
        """With their names, which other threads make, some batches ahead: that is most of the work where little changed."""
        ahead: deque[tuple[list[Chunk], Future[list[bytes]]]] = deque()
        while batch := list(islice(chunks, _BATCH)):
            ahead.append((batch, threads.submit(self._ids, batch)))
            if len(ahead) > _THREADS:
                yield from _joined(*ahead.popleft())
        while ahead:
            yield from _joined(*ahead.popleft())

    def _ids(self, batch: list[Chunk]) -> list[bytes]:
        return [self._sealer.id_of(chunk) for _, chunk in batch]

    def _full(self) -> Iterator[Pack]:
        if self._size >= PACK_BYTES:
            yield self._close()

    def _close(self) -> Pack:
        pack = Pack(self._name, tuple(self._parts))
        self._begin()
        return pack

    def _ref(self, chunk: bytes | memoryview, chunk_id: bytes) -> Ref:
        known = self._known.get(chunk_id)
        if known is not None:
            return known
        ref = Ref(self._name, self._size, len(chunk), chunk_id)
        self._parts.append(self._cipher.seal(ref.offset, chunk_id, chunk))
        self._size += len(chunk) + TAG_BYTES
        self._known[chunk_id] = ref
        return ref


def _joined(
    batch: list[Chunk], ids: Future[list[bytes]]
) -> Iterator[tuple[int, bytes | memoryview, bytes]]:
    return (
        (number, chunk, name) for (number, chunk), name in zip(batch, ids.result(), strict=True)
    )


def _chunks(snapshot: Snapshot) -> Iterator[Chunk]:
    for offset, data in snapshot.parts:
        view = memoryview(data)
        for at in range(0, len(view), CHUNK_BYTES):
            chunk = view[at : at + CHUNK_BYTES]
            # Comparing the views would go byte by byte; a first byte that is not zero says enough.
            if chunk[0] or chunk.tobytes().count(0) != len(chunk):
                yield (offset + at) // CHUNK_BYTES, chunk
