"""Makes checkpoints, one after another, each upon the last.

Packs, then the manifest, each acknowledged by the keeper; what follows is the caller's: the head is anchored, and only
then `settle` deletes what no kept checkpoint names. A crash between any two of them leaves the last anchored one whole.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import trio

from bot.checkpoint.blobs import (
    Blobs,
    BlobsFailed,
    is_manifest_name,
    is_pack_name,
    manifest_name,
    pack_name,
)
from bot.checkpoint.manifest import Entry, Index, Manifest, Ref, encode_manifest
from bot.checkpoint.packer import PACK_BYTES, Pack, Packer, Snapshot
from bot.checkpoint.seal import TAG_BYTES, Sealer, digest_of
from keycrux_client.shares import Head

KEPT = 3
# A pack of which less is alive is not referred to any more: what it still holds is packed again.
LEAST_ALIVE = 1 / 3
# A manifest names no more packs than it may: of so many small ones, all are packed again.
MOST_SMALL_PACKS, SMALL_PACK_BYTES = 4_096, PACK_BYTES // 8
# So many are on their way at once: while one waits for the keeper's disk, another is sent, and a next one sealed.
_PUTS = 3


@dataclass(frozen=True)
class State:
    """A checkpoint and all of its indexes, by name of file: what the next one is made upon."""

    manifest: Manifest
    head: Head
    indexes: Mapping[str, Index]

    def names(self) -> set[str]:
        """Of all blobs that it needs."""
        packs = map(pack_name, self.manifest.packs)
        return {manifest_name(self.head.digest), *packs}


@dataclass(frozen=True)
class Saved:
    """What one checkpoint put, in bytes, and what it is now."""

    state: State
    put_bytes: int


class Saver:
    """``last`` is what was restored, or None for the first checkpoint of a new state. ``there``: what the keeper listed
    before this life put anything; what of it nobody needs is deleted in time."""

    def __init__(
        self,
        sealer: Sealer,
        blobs: Blobs,
        epoch: int,
        last: State | None,
        there: Iterable[str] = (),
    ) -> None:
        self._sealer, self._blobs, self._epoch, self._last = sealer, blobs, epoch, last
        # Of earlier lives and of ours. Never asked for again: a later life may have begun beside us, whose blobs we do
        # not know, and must not delete.
        self._there = {name for name in there if is_pack_name(name) or is_manifest_name(name)}
        self._kept: list[State] = [last] if last else []
        self._number = last.head.number if last else 0
        self._sizes: dict[bytes, int] = dict(last.manifest.packs) if last else {}
        self._worn: frozenset[bytes] = frozenset()
        self._known = self._living()

    def resealed(self, sealer: Sealer) -> "Saver":
        """One that goes on with another key: nothing that was sealed before is referred to, and all of it leaves once
        the first of the new ones is anchored."""
        fresh = Saver(sealer, self._blobs, self._epoch, None, self._there)
        fresh._number = self._number
        return fresh

    @property
    def last(self) -> State | None:
        """The newest checkpoint that the keeper acknowledged."""
        return self._last

    @property
    def unsettled(self) -> int:
        """How many checkpoints the keeper must keep: they grow in number while none is settled."""
        return len(self._kept)

    def is_kept(self, name: str) -> bool:
        """Whether the last checkpoint has this file in chunks that are worth referring to. Else it must be read again."""
        if self._last is None or name not in self._last.indexes:
            return False
        return not any(ref.pack in self._worn for ref in self._last.indexes[name].values())

    async def save(
        self, changed: Iterable[Snapshot], same: Sequence[str], secret: bytes, now: int
    ) -> Saved:
        """Put a checkpoint with what changed, and with files of the last one that did not. All others are gone.

        ``changed`` may be made one after another, in a worker thread, when it is their turn; ``same`` is looked at after
        that, so it may grow meanwhile.

        Raises `BlobsFailed`; then nothing counts as put, and the next one begins upon the last again.
        """
        try:
            return await self._save(changed, same, secret, now)
        except BaseException:
            # What was sealed and not put must not be referred to.
            self._known = self._living()
            raise

    async def _save(
        self, changed: Iterable[Snapshot], same: Sequence[str], secret: bytes, now: int
    ) -> Saved:
        entries, indexes, size = await self._put_packs(changed)
        if self._last is not None:
            kept = {entry.name: entry for entry in self._last.manifest.entries}
            entries += [kept[name] for name in same]
            indexes |= {name: self._last.indexes[name] for name in same}
        # Also one that failed has used up its number.
        self._number += 1
        manifest = Manifest(
            self._epoch,
            self._number,
            bytes.fromhex(self._last.head.digest) if self._last else bytes(32),
            now,
            tuple(entries),
            {name: self._sizes[name] for name in _packs(entries, indexes)},
            secret,
        )
        raw = self._sealer.seal_manifest(encode_manifest(manifest))
        digest = digest_of(raw)
        await self._put_blob(manifest_name(digest), [raw])
        self._last = State(manifest, Head(self._epoch, self._number, digest), indexes)
        self._kept.append(self._last)
        return Saved(self._last, size + len(raw))

    async def _put_packs(
        self, changed: Iterable[Snapshot]
    ) -> tuple[list[Entry], dict[str, Index], int]:
        """One is sealed while another is put. Raises `BlobsFailed`."""
        send, receive = trio.open_memory_channel[Pack](0)
        packed: list[tuple[Entry, Index]] = []
        sizes: dict[bytes, int] = {}
        failed: list[BlobsFailed] = []

        async def put() -> None:
            try:
                async for pack in receive:
                    await self._put_blob(pack_name(pack.name), pack.parts)
                    sizes[pack.name] = sum(map(len, pack.parts))
            except BlobsFailed as error:
                failed.append(error)
                nursery.cancel_scope.cancel()

        async with receive, trio.open_nursery() as nursery:
            nursery.start_soon(self._seal, changed, send, packed)
            for _ in range(_PUTS):
                nursery.start_soon(put)
        if failed:
            raise failed[0]
        self._sizes |= sizes
        indexes = {entry.name: index for entry, index in packed}
        return [entry for entry, _ in packed], indexes, sum(sizes.values())

    async def _put_blob(self, name: str, parts: Sequence[bytes]) -> None:
        # Also when it fails, it may be there.
        self._there.add(name)
        await self._blobs.put(name, parts)

    async def _seal(
        self,
        changed: Iterable[Snapshot],
        send: trio.MemorySendChannel[Pack],
        packed: list[tuple[Entry, Index]],
    ) -> None:
        work = Packer(self._sealer, self._known).pack(changed)
        async with send:
            while (done := await trio.to_thread.run_sync(next, work, None)) is not None:
                if isinstance(done, Pack):
                    await send.send(done)
                else:
                    packed.append(done)

    async def settle(self, anchored: Head) -> int:
        """The head is anchored: delete what the newest `KEPT` checkpoints up to it do not name, and only that.
        How many blobs were deleted. Raises `BlobsFailed`."""
        older = [state for state in self._kept if state.head <= anchored]
        newer = [state for state in self._kept if state.head > anchored]
        self._kept = older[-KEPT:] + newer
        self._known = self._living()
        needed = {name for state in self._kept for name in state.names()}
        over = self._there - needed
        if over:
            await self._blobs.delete(sorted(over))
            self._there -= over
        return len(over)

    def _living(self) -> dict[bytes, Ref]:
        """Chunks of the last checkpoint by name, those in worn packs left out; and which packs are worn."""
        if self._last is None:
            return {}
        refs = [ref for index in self._last.indexes.values() for ref in index.values()]
        by_id = {ref.chunk_id: ref for ref in refs}
        by_id |= {entry.index.chunk_id: entry.index for entry in self._last.manifest.entries}
        alive = Counter[bytes]()
        for ref in by_id.values():
            alive[ref.pack] += ref.length + TAG_BYTES
        self._sizes = dict(self._last.manifest.packs)
        self._worn = _worn(alive, self._sizes)
        return {name: ref for name, ref in by_id.items() if ref.pack not in self._worn}


def _worn(alive: Mapping[bytes, int], sizes: Mapping[bytes, int]) -> frozenset[bytes]:
    """Packs that are not worth keeping, by how many of their bytes somebody refers to."""
    worn = frozenset(name for name, size in alive.items() if size < LEAST_ALIVE * sizes[name])
    small = frozenset(name for name in alive if sizes[name] < SMALL_PACK_BYTES)
    return worn | small if len(small) > MOST_SMALL_PACKS else worn


def _packs(entries: Sequence[Entry], indexes: Mapping[str, Index]) -> set[bytes]:
    named = {ref.pack for index in indexes.values() for ref in index.values()}
    return named | {entry.index.pack for entry in entries}
