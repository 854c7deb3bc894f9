"""Run inside the engine's network by test_container_door.py: the door, a real engine, a container that knocks.

Arguments: the engine's socket, its cgroup parent, a registry, a pinned image whose command knocks, a folder. Prints JSON.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import trio

from bot.adapters.docker_engine import DockerConfig, DockerEngine
from bot.adapters.image_store import ImageStore, StoreConfig
from bot.adapters.oci_registry import OciRegistry
from bot.adapters.registry_client import RegistryConfig
from bot.adapters.store.sqlite import SqliteStore
from bot.clock import SystemClock, boot_id
from bot.devstack.engine import CONTAINER_PORT
from bot.server.doors.container import ContainerDoor
from handlers.certify import container_token
from handlers.domain.lifecycle import State
from handlers.domain.limits import UnitSize, limits_for
from handlers.domain.pricing import Tariff
from handlers.ports import ContainerSpec
from handlers.records import Container
from nips.keys import SecretKey
from tests.fakes import make_context


async def main(socket: str, cgroup_parent: str, host: str, image: str, folder: str) -> None:
    clock, owner = SystemClock(), SecretKey.generate()
    registry = OciRegistry(RegistryConfig((host,)))
    kept = StoreConfig(Path(folder) / "images", socket, owner.pubkey, 1_000_000_000)
    images = ImageStore(kept, registry, clock)
    docker = DockerConfig(socket, owner.pubkey, cgroup_parent)
    engine = DockerEngine(docker, images, boot_id(), clock)
    store = SqliteStore(Path(folder) / "door.sqlite")
    ctx = make_context(store, None, engine, clock, key=owner)
    endpoint = f"ws://enclaved:{CONTAINER_PORT}"
    ctx = replace(ctx, presence=replace(ctx.presence, container_endpoint=endpoint))
    keys = [SecretKey.generate() for _ in range(2)]
    for key in keys:
        row = Container(
            key.pubkey,
            key.reveal_secret(),
            owner.pubkey,
            "app",
            image,
            image,
            1,
            Tariff(),
            State.DEPLOYED,
            0,
            0,
        )
        await store.write(lambda tx, row=row: tx.containers.add(row))
    tokens = [container_token(ctx, key.pubkey, 1) for key in keys]
    async with trio.open_nursery() as nursery:
        await nursery.start(ContainerDoor(ctx).serve, "0.0.0.0", CONTAINER_PORT)
        logs = []
        # Each knocks with its own token, and with the other's.
        for key, own, others in zip(keys, tokens, tokens[::-1], strict=True):
            env = {"OWN": own, "OTHER": others, "PORT": str(CONTAINER_PORT)}
            spec = ContainerSpec(key.pubkey, image, 1, limits_for(1, UnitSize()), env, (), ())
            problem = await engine.start(spec)
            assert problem is None, problem
            with trio.fail_after(30):
                while "done" not in (text := await engine.logs(key.pubkey, 100)):
                    await trio.sleep(0.1)
            logs.append(text)
        for key in keys:
            await engine.remove(key.pubkey, keep_volumes=False)
        nursery.cancel_scope.cancel()
    engine.close()
    await registry.aclose()
    store.close()
    print(json.dumps(logs))


trio.run(main, *sys.argv[1:])
