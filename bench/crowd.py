"""What a start takes when 1, 50 or 200 containers are there already: the engine alone, image present, no payment."""

import tempfile
import time
from pathlib import Path
from statistics import median

import trio

from bot.adapters.docker_engine import DockerConfig, DockerEngine
from bot.adapters.image_store import ImageStore, StoreConfig
from bot.adapters.oci_registry import OciRegistry
from bot.adapters.registry_client import RegistryConfig
from bot.clock import SystemClock, boot_id
from bot.devstack.ground import ground
from bot.devstack.sample import build_image
from handlers.domain.limits import UnitSize, limits_for
from handlers.ports import ContainerSpec
from handlers.records import PublishedPort
from nips.keys import SecretKey

SIZES, ROUNDS = (1, 50, 200), 7


async def one(engine: DockerEngine, image: str, port: int) -> tuple[str, float]:
    """Start one; its key, and the seconds."""
    pubkey = SecretKey.generate().pubkey
    ports = (PublishedPort(port, "8080/tcp"),)
    spec = ContainerSpec(pubkey, image, 1, limits_for(1, UnitSize()), {}, (), ports)
    began_s = time.monotonic()
    problem = await engine.start(spec)
    assert problem is None, problem
    return pubkey, time.monotonic() - began_s


async def measure() -> None:
    clock, sleep = SystemClock(), build_image("exec sleep 100000", ports=("8080/tcp",), volumes=())
    async with ground(lambda _: None) as on:
        tag = await on.push("bench/sleep", "1", sleep)
        image = f"{tag.rpartition(':')[0]}@{sleep.digest}"
        registry, socket = OciRegistry(RegistryConfig((on.registry_host,))), str(on.place.socket)
        with tempfile.TemporaryDirectory() as folder:
            kept = StoreConfig(Path(folder), socket, "b" * 64, 1_000_000_000)
            engine = DockerEngine(
                DockerConfig(socket, "b" * 64, on.place.cgroup_parent),
                ImageStore(kept, registry, clock),
                boot_id(),
                clock,
            )
            print("\nA start beside others that sleep (the engine alone, medians)")
            there, port = 0, 30_000
            for size in SIZES:
                while there < size:
                    _, _ = await one(engine, image, port := port + 1)
                    there += 1
                starts, removals = [], []
                for _ in range(ROUNDS):
                    pubkey, took_s = await one(engine, image, port := port + 1)
                    starts.append(took_s)
                    began_s = time.monotonic()
                    await engine.remove(pubkey, keep_volumes=False)
                    removals.append(time.monotonic() - began_s)
                print(
                    f"  beside {size}: start {median(starts) * 1_000:.0f} ms, removal {median(removals) * 1_000:.0f} ms",
                    flush=True,
                )
            engine.close()
        await registry.aclose()


def run() -> None:
    trio.run(measure)
