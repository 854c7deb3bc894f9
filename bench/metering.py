"""CPU that metering 100 running containers costs: the real engine, the real store, the server's own tick."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import trio

from bot.adapters.docker_engine import DockerConfig, DockerEngine
from bot.adapters.image_store import ImageStore, StoreConfig
from bot.adapters.oci_registry import OciRegistry
from bot.adapters.registry_client import RegistryConfig
from bot.adapters.store.sqlite import SqliteStore
from bot.clock import SystemClock, boot_id
from bot.devstack.sample import build_image
from bot.devstack.stack import ground
from handlers.context import Policy
from handlers.domain.capacity import Capacity
from handlers.domain.ledger import MAIN_WALLET, payment
from handlers.domain.lifecycle import State
from handlers.domain.limits import UnitSize, limits_for
from handlers.domain.pricing import Tariff
from handlers.duties.charge import tick
from handlers.ports import ContainerSpec
from handlers.records import Container
from nips.keys import SecretKey
from tests.fakes import make_context

CONTAINERS, SECONDS = 100, 70


async def start_all(engine: DockerEngine, store: SqliteStore, image: str, now: int) -> None:
    async def one(number: int) -> None:
        key = SecretKey.generate()
        row = Container(
            key.pubkey, key.reveal_secret(), "a" * 64, f"c{number}", image, image, 1, Tariff(), State.DEPLOYED, now, now
        )  # fmt: skip
        await store.write(lambda tx: tx.containers.add(row))
        entry = payment(f"{number:064x}", key.pubkey, MAIN_WALLET, 10**9)
        await store.write(lambda tx: tx.ledger.post(entry, now))
        spec = ContainerSpec(key.pubkey, image, 1, limits_for(1, UnitSize()), {}, (), ())
        problem = await engine.start(spec)
        assert problem is None, problem

    async with trio.open_nursery() as nursery:
        for number in range(CONTAINERS):
            nursery.start_soon(one, number)


async def measure() -> None:
    clock = SystemClock()
    async with ground(lambda _: None) as on:
        tag = await on.push(
            "bench/sleep", "1", build_image("exec sleep 100000", ports=(), volumes=())
        )
        digest = build_image("exec sleep 100000", ports=(), volumes=()).digest
        image = f"{tag.rpartition(':')[0]}@{digest}"
        registry = OciRegistry(RegistryConfig((on.registry_host,)))
        with tempfile.TemporaryDirectory() as folder:
            socket = str(on.place.socket)
            kept = StoreConfig(Path(folder) / "images", socket, "b" * 64, 1_000_000_000)
            engine = DockerEngine(
                DockerConfig(socket, "b" * 64, on.place.cgroup_parent),
                ImageStore(kept, registry, clock),
                boot_id(),
                clock,
            )
            store = SqliteStore(Path(folder) / "enclaved.sqlite")
            policy = replace(Policy(), capacity=Capacity(total_units=1_000))
            ctx = make_context(store, None, engine, clock, policy=policy)
            await start_all(engine, store, image, clock.now())
            await trio.sleep(4)
            await tick(ctx)
            cpu, wall = time.process_time(), time.monotonic()
            for _ in range(SECONDS):
                await tick(ctx)
                await trio.sleep(1)
            share = (time.process_time() - cpu) / (time.monotonic() - wall)
            charges = await store.read(
                lambda tx: tx._db.execute(
                    "SELECT count(*) FROM entry WHERE key LIKE 'charge:%'"
                ).fetchone()[0]
            )
            alive = len(engine.runs())
            store.close()
            engine.close()
        await registry.aclose()
    print(
        f"\nMetering {alive} containers, one look a second, charged every 60 s ({charges} charges in {SECONDS} s)"
    )
    print(f"  {share * 100:.2f} % of one core")


def run() -> None:
    trio.run(measure)
