"""From an anchored head back to files. The keeper's blobs are asked for by name, and believed only when they open."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from bot.checkpoint.blobs import Blobs, manifest_name, pack_name
from bot.checkpoint.manifest import (
    CHUNK_BYTES,
    MAX_MANIFEST_BYTES,
    Manifest,
    Ref,
    decode_index_untrusted,
    decode_manifest_untrusted,
)
from bot.checkpoint.saver import State
from bot.checkpoint.seal import TAG_BYTES, BadCheckpoint, Sealer, digest_of
from keycrux_client.shares import Head

Write = Callable[[int, bytes], object]
"""Takes an offset and what belongs there."""


@dataclass
class Progress:
    """Of a restore, in bytes of content."""

    done_bytes: int = 0
    all_bytes: int = 0


async def read_manifest(sealer: Sealer, blobs: Blobs, head: Head) -> Manifest | None:
    """The manifest of that head, or None when the keeper has none. Raises `BadCheckpoint`, `BlobsFailed`."""
    raw = await blobs.get(manifest_name(head.digest), MAX_MANIFEST_BYTES)
    return None if raw is None else open_manifest_untrusted(sealer, raw, head)


def open_manifest_untrusted(sealer: Sealer, raw: bytes, head: Head) -> Manifest:
    """Raises `BadCheckpoint` for anything but the manifest that the head names."""
    if digest_of(raw) != head.digest:
        raise BadCheckpoint("the keeper handed over another manifest than the one asked for")
    manifest = decode_manifest_untrusted(sealer.open_manifest_untrusted(raw))
    if (manifest.epoch, manifest.number) != (head.epoch, head.number):
        raise BadCheckpoint("the manifest is not of the epoch and number that it is anchored as")
    return manifest


async def read_state(sealer: Sealer, blobs: Blobs, manifest: Manifest, head: Head) -> State:
    """All indexes of a checkpoint. Raises `BadCheckpoint`, `BlobsFailed`."""
    raws: dict[str, bytes] = {}
    wanted = [(entry.index, _keep(raws, entry.name)) for entry in manifest.entries]
    await _fetch(sealer, blobs, manifest, wanted)
    indexes = {
        entry.name: decode_index_untrusted(raws[entry.name], entry.size)
        for entry in manifest.entries
    }
    return State(manifest, head, indexes)


def _keep(raws: dict[str, bytes], name: str) -> Callable[[bytes], object]:
    return lambda raw: raws.__setitem__(name, raw)


async def restore(
    sealer: Sealer,
    blobs: Blobs,
    state: State,
    sinks: Mapping[str, Write],
    progress: Progress | None = None,
) -> None:
    """Write the files for which there is a sink, in no order; what is not written is zero.

    Raises `BadCheckpoint`, `BlobsFailed`, and what a sink raises.
    """
    progress = progress or Progress()
    wanted: list[tuple[Ref, Callable[[bytes], object]]] = []
    for name, write in sinks.items():
        for number, ref in state.indexes[name].items():
            wanted.append((ref, _at(write, number * CHUNK_BYTES, progress)))
            progress.all_bytes += ref.length
    await _fetch(sealer, blobs, state.manifest, wanted)


def _at(write: Write, offset: int, progress: Progress) -> Callable[[bytes], object]:
    def take(chunk: bytes) -> None:
        write(offset, chunk)
        progress.done_bytes += len(chunk)

    return take


async def _fetch(
    sealer: Sealer,
    blobs: Blobs,
    manifest: Manifest,
    wanted: list[tuple[Ref, Callable[[bytes], object]]],
) -> None:
    """Each pack once, however many files are in it."""
    by_pack = defaultdict[bytes, list[tuple[Ref, Callable[[bytes], object]]]](list)
    for ref, take in wanted:
        by_pack[ref.pack].append((ref, take))
    for name, refs in by_pack.items():
        size = manifest.packs.get(name)
        if size is None:
            raise BadCheckpoint("the checkpoint refers to a pack that it does not name")
        raw = await blobs.get(pack_name(name), size)
        if raw is None or len(raw) != size:
            raise BadCheckpoint(f"the keeper has no pack {name.hex()} as the checkpoint needs it")
        await trio.to_thread.run_sync(_unpack, sealer, name, raw, refs)


def _unpack(
    sealer: Sealer,
    name: bytes,
    raw: bytes,
    refs: list[tuple[Ref, Callable[[bytes], object]]],
) -> None:
    cipher, view = sealer.cipher_of(name), memoryview(raw)
    for ref, take in refs:
        sealed = view[ref.offset : ref.offset + ref.length + TAG_BYTES]
        take(cipher.open_untrusted(ref.offset, ref.chunk_id, sealed))
