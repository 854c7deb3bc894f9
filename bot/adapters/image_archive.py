"""Docker's archive format (``docker save``, version 1.2), as it is sent to ``docker load``: nothing is built on disk.

Layers go as they were unpacked when they were checked: old engines need not know zstd, and the engine, whose
share of the processor is small, does not unpack a stranger's bytes.
"""

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson

from bot.adapters.image_fetch import Unpacked
from bot.adapters.oci_registry import Manifest

CHUNK_BYTES = 1 << 20


def docker_archive(
    manifest: Manifest, layers: Mapping[str, Unpacked], tag: str
) -> Iterator[bytes]:
    """The archive's bytes. Loaded, the image has ``tag``, and its id is its config's digest."""
    for digest, layer in layers.items():
        yield from _entry(_name(digest), layer.unpacked_bytes, _chunks(layer.path))
    config = f"{manifest.resolved.image_id}.json"
    yield from _entry(config, len(manifest.config), iter([manifest.config]))
    listed = [_name(one.digest) for one in manifest.layers]
    index = orjson.dumps([{"Config": config, "RepoTags": [tag], "Layers": listed}])
    yield from _entry("manifest.json", len(index), iter([index]))
    yield bytes(2 * tarfile.BLOCKSIZE)


def _name(digest: str) -> str:
    return f"{digest.removeprefix('sha256:')}.tar"


def _entry(name: str, size: int, content: Iterator[bytes]) -> Iterator[bytes]:
    header = tarfile.TarInfo(name)
    header.size = size
    yield header.tobuf(tarfile.GNU_FORMAT)
    yield from content
    yield bytes(-size % tarfile.BLOCKSIZE)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
