"""Docker's archive format (``docker save``, version 1.2), as it is sent to ``docker load``: nothing is built on disk.

Layers go as they came: the engine unpacks gzip by itself. zstd, which old engines do not know, is unpacked
on the way; what it unpacks to was checked before, and its size is known.
"""

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson

from bot.adapters.image_fetch import Packed
from bot.adapters.layer import Kind, Unpacker
from bot.adapters.oci_registry import Manifest

CHUNK_BYTES = 1 << 20


def docker_archive(manifest: Manifest, layers: Mapping[str, Packed], tag: str) -> Iterator[bytes]:
    """The archive's bytes. Loaded, the image has ``tag``, and its id is its config's digest."""
    names = {digest: _name(digest, packed.kind) for digest, packed in layers.items()}
    for digest, packed in layers.items():
        yield from _entry(names[digest], _size(packed), _content(packed))
    config = f"{manifest.resolved.image_id}.json"
    yield from _entry(config, len(manifest.config), iter([manifest.config]))
    listed = [names[layer.digest] for layer in manifest.layers]
    index = orjson.dumps([{"Config": config, "RepoTags": [tag], "Layers": listed}])
    yield from _entry("manifest.json", len(index), iter([index]))
    yield bytes(2 * tarfile.BLOCKSIZE)


def _name(digest: str, kind: Kind) -> str:
    return f"{digest.removeprefix('sha256:')}.{'tar.gz' if kind is Kind.GZIP else 'tar'}"


def _size(packed: Packed) -> int:
    return packed.unpacked_bytes if packed.kind is Kind.ZSTD else packed.packed_bytes


def _entry(name: str, size: int, content: Iterator[bytes]) -> Iterator[bytes]:
    header = tarfile.TarInfo(name)
    header.size = size
    yield header.tobuf(tarfile.GNU_FORMAT)
    yield from content
    yield bytes(-size % tarfile.BLOCKSIZE)


def _content(packed: Packed) -> Iterator[bytes]:
    unpacker = Unpacker(Kind.ZSTD) if packed.kind is Kind.ZSTD else None
    for chunk in _chunks(packed.path):
        if unpacker is None:
            yield chunk
        else:
            yield from unpacker.feed(chunk)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
