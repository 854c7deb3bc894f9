"""Our own fetch, check and load of an image against ``docker pull`` of the same: in turns, from a registry beside us."""

import gzip
import hashlib
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import trio

from bot.adapters.image_store import ImageStore, Kept, StoreConfig
from bot.adapters.oci_registry import OciRegistry
from bot.adapters.registry_client import RegistryConfig
from bot.clock import SystemClock
from bot.devstack.ground import Ground, ground
from bot.devstack.sample import CONFIG, LAYER, MANIFEST, Image
from handlers.domain.limits import UnitSize, limits_for
from handlers.ports import ContainerSpec
from tests.registry_site import tar_of

ROUNDS, LAYERS, LAYER_BYTES = 5, 3, 40_000_000


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def half_random(seed: int, size: int) -> bytes:
    """Bytes that gzip halves: four bits of each are random."""
    noise = hashlib.shake_128(str(seed).encode()).digest(size // 2)
    return noise.hex().encode()


def large_image() -> Image:
    """Three layers of 40 MB, each of 400 files; 20 MB each when compressed."""
    tars = []
    for layer in range(LAYERS):
        content = half_random(layer, LAYER_BYTES)
        step = len(content) // 400
        parts = [content[at : at + step] for at in range(0, len(content), step)]
        files = {f"d{layer}/f{number}": part for number, part in enumerate(parts)}
        tars.append(tar_of(files))
    packed = [gzip.compress(tar, 6, mtime=0) for tar in tars]
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Cmd": ["/none"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]},
        "history": [{"created_by": "bench"}] * LAYERS,
    }
    raw = json.dumps(config).encode()
    listed = [{"mediaType": LAYER, "digest": digest(p), "size": len(p)} for p in packed]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": digest(raw), "size": len(raw)},
        "layers": listed,
    }
    blobs = {digest(raw): raw, **{digest(p): p for p in packed}}
    return Image(blobs, json.dumps(manifest).encode())


async def pulled(on: Ground, image: str) -> float:
    docker = ["docker", "-H", f"unix://{on.place.socket}"]
    began = time.perf_counter()
    await trio.run_process([*docker, "pull", "-q", image], capture_stdout=True)
    took = time.perf_counter() - began
    await trio.run_process([*docker, "image", "rm", image], capture_stdout=True)
    return took


async def fetched(images: ImageStore, image: str) -> float:
    spec = ContainerSpec("a" * 64, image, 1, limits_for(50, UnitSize()), {}, (), ())
    began = time.perf_counter()
    got = await images.get(spec)
    took = time.perf_counter() - began
    assert isinstance(got, Kept), got
    await images.drop(image)
    return took


async def measure() -> None:
    async with ground(lambda _: None, dockerd_may_pull=True) as on:
        image = large_image()
        tag = await on.push("bench/large", "1", image)
        pinned = f"{tag.rpartition(':')[0]}@{image.digest}"
        registry = OciRegistry(RegistryConfig((on.registry_host,)))
        with tempfile.TemporaryDirectory() as folder:
            kept = StoreConfig(Path(folder), str(on.place.socket), "b" * 64, 2_000_000_000)
            images = ImageStore(kept, registry, SystemClock())
            ours, theirs = [], []
            for _ in range(ROUNDS):
                theirs.append(await pulled(on, pinned))
                ours.append(await fetched(images, pinned))
            images.close()
        await registry.aclose()
    show(image, ours, theirs)


def show(image: Image, ours: list[float], theirs: list[float]) -> None:
    packed = sum(map(len, image.blobs.values())) / 1e6
    a, b = median(ours), median(theirs)
    print(
        f"\nAn image of {LAYERS} layers, {LAYERS * LAYER_BYTES / 1e6:.0f} MB, {packed:.0f} MB packed, gone before each round"
    )
    print(
        f"  medians of {ROUNDS} rounds in turn: `docker pull` {b:.2f} s, own fetch, check and load {a:.2f} s: {a / b:.2f} x"
    )


def run() -> None:
    trio.run(measure)
