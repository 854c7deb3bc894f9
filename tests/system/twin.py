"""A second enclave, started by the same host from the same backup: what a lying host does."""

import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from bot.boot.supervisor import Program, Supervisor
from bot.devstack.engine import EnginePlace
from bot.devstack.ground import Ground
from bot.devstack.spaces import Booted, Space, join
from bot.devstack.whole import Net, WholeEnclave


@dataclass
class OtherNet(Net):
    """Beside the first parent's."""

    @property
    def internet(self):
        return f"54.1.{self.number}.1"

    @property
    def parent(self):
        return f"54.1.{self.number}.2"


@asynccontextmanager
async def twin(on):
    """Not powered on yet; its parent keeps its blobs where the first one's does."""
    first, folder = on.enclave, on.enclave.folder / "twin"
    folder.mkdir()
    shutil.copytree(first.folder / "authority", folder / "authority")
    (folder / "parent").symlink_to(first.folder / "parent")
    supervisor, machine = Supervisor(folder), Booted(folder / "enclave", first.machine.image)
    net = OtherNet(int(on.relay_url.split(".")[2]))
    try:
        async with trio.open_nursery() as nursery:
            try:
                space = Space("parent-two")
                await space.start(supervisor, nursery)
                await join(on.ground.engine, net.internet, space, net.parent, 24)
                await space.do(f"ip route add default via {net.internet}")
                # What others wait for runs already, under the first one's supervisor.
                await supervisor.start(nursery, Program("registry", ["sleep", "infinity"]))
                place = EnginePlace(folder, machine.name, net.internet, net.parent)
                second = WholeEnclave(
                    Ground(place, supervisor, nursery, on.ground.engine), first.config, on.relay_url,
                    first.people, first.escrow_people, first.image, has_parent=True,
                    parent_space=space, machine=machine, kind=first.kind, server=first.server,
                )  # fmt: skip
                yield second
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(machine.cut_power)
                    await supervisor.stop()
                nursery.cancel_scope.cancel()
    finally:
        machine.cut_power()
