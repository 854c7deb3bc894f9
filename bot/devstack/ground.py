"""DEVELOPMENT ONLY. A private Docker and a registry under one supervisor, cleaned up at the end."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from bot.boot.supervisor import Program, Supervisor
from bot.devstack import registry
from bot.devstack.engine import EnginePlace, PrivateEngine, choose_place
from bot.devstack.sample import Image

BASE = Path("/var/tmp/enclaved-dev")
REGISTRY_PORT = 5_000
Say = Callable[[str], None]


class Inside(Protocol):
    """Where services run: they end with it, however we end."""

    def enter(self, command: list[str], *, network: bool = True) -> list[str]: ...


@dataclass(frozen=True)
class Ground:
    """A private Docker and a registry, running. ``engine.enter`` wraps a command into its namespaces."""

    place: EnginePlace
    supervisor: Supervisor
    nursery: trio.Nursery
    engine: Inside

    @property
    def registry_host(self) -> str:
        return _registry_host(self.place)

    async def push(self, repository: str, tag: str, image: Image) -> str:
        """Upload an image; its reference by tag."""
        await registry.push(self.registry_host, repository, tag, image)
        return f"{self.registry_host}/{repository}:{tag}"


@asynccontextmanager
async def ground(say: Say, *, dockerd_may_pull: bool = False) -> AsyncIterator[Ground]:
    """Docker and registry. Leaves nothing behind, also after an earlier run that could not clean up."""
    folder = own_folder()
    place = choose_place(folder)
    supervisor = Supervisor(folder)
    pulls_from = _registry_host(place) if dockerd_may_pull else None
    engine = PrivateEngine(place, pulls_from=pulls_from)
    try:
        async with trio.open_nursery() as nursery:
            try:
                say("starting a private Docker in its own namespaces")
                await engine.start(supervisor, nursery)
                say(f"starting a registry on {_registry_host(place)}")
                await _start_registry(engine, supervisor, nursery)
                yield Ground(place, supervisor, nursery, engine)
            finally:
                with trio.CancelScope(shield=True):
                    await supervisor.stop()
                nursery.cancel_scope.cancel()
    finally:
        engine.clean_up()


def _registry_host(place: EnginePlace) -> str:
    return f"{place.host_address}:{REGISTRY_PORT}"


async def _start_registry(
    engine: PrivateEngine, supervisor: Supervisor, nursery: trio.Nursery
) -> None:
    place = engine.place
    address = _registry_host(place)
    path = place.folder / "registry.yml"
    path.write_text(registry.configuration(place.folder / "registry", address))
    # On this side of the wire, with us; its processes and mounts are the engine's, and end with them.
    command = engine.enter(["docker-registry", "serve", str(path)], network=False)
    ready = Program(
        "registry", command, after=("dockerd",), ready=lambda: registry.is_ready(address)
    )
    await supervisor.start(nursery, ready)


def own_folder() -> Path:
    """A new one, which says whose it is from the moment that others see it; what runs that are gone left behind is removed."""
    BASE.mkdir(exist_ok=True, mode=0o711)
    _remove_leftovers()
    new = Path(tempfile.mkdtemp(prefix="new", dir=BASE))
    (new / "owner").write_text(str(os.getpid()))
    return new.rename(BASE / new.name.replace("new", "e", 1))


def _remove_leftovers() -> None:
    """Of runs whose process is gone: their namespaces went with it, their files did not."""
    for folder in BASE.glob("e*"):
        try:
            owner = (folder / "owner").read_text()
        except OSError:
            owner = "nobody"
        if not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)
