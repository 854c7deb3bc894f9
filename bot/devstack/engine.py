"""DEVELOPMENT ONLY. A private Docker in namespaces of its own, joined to this machine by a veth pair.

Network, mounts and processes are its own, so it shares no firewall chain, bridge or socket with any
other Docker here, and the end of one process takes everything away: the first process of the pid
namespace waits on a pipe that closes when the supervisor dies, however it dies.

containerd runs apart from dockerd (live-restore), so containers outlive a dockerd crash. dockerd sits
in a CPU-limited cgroup: a tenant that floods its log costs the others nothing.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import trio

from bot.adapters.engine.cgroup import group_of_cores, joining
from bot.boot.machine.engine_files import EnginePaths, EngineSettings
from bot.boot.machine.probes import docker_answers, socket_answers
from bot.boot.supervisor import Program, Supervisor
from bot.devstack.spaces import Space, run

ENGINE_PERCENT = 100
_CONTROLLERS_V1 = (
    "cpu",
    "cpuacct",
    "memory",
    "pids",
    "devices",
    "freezer",
    "blkio",
    "cpuset",
    "systemd",
)
_CGROUP = Path("/sys/fs/cgroup")
# Tenants reach neither this machine nor anything private; answers to what came in may leave.
_PRIVATE = ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.168.0.0/16", "224.0.0.0/4", "240.0.0.0/4")  # fmt: skip
# Where a server inside the engine's network may listen for containers.
CONTAINER_PORT = 7_070
# ... and the group by which it may reach others from there.
SERVER_GID = 7_070


@dataclass(frozen=True)
class EnginePlace:
    """Where it lives: folder, unique name, and the two ends of the veth pair."""

    folder: Path
    name: str
    host_address: str
    engine_address: str

    @property
    def socket(self) -> Path:
        return self.folder / "docker.sock"

    @property
    def paths(self) -> EnginePaths:
        return EnginePaths(self.folder, self.folder / "data", self.socket)

    @property
    def cgroup_parent(self) -> str:
        return f"/{self.name}"


def choose_place(folder: Path) -> EnginePlace:
    """A free name and a /30 that no interface here uses."""
    listed = json.loads(subprocess.check_output(["ip", "-j", "addr"]))
    used = {
        a["local"].rpartition(".")[0]
        for link in listed
        for a in link["addr_info"]
        if a["family"] == "inet"
    }
    # At random: two that start at the same time must not choose the same.
    free = [net for n in range(1, 255) if (net := f"10.213.{n}") not in used]
    net = secrets.choice(free)
    return EnginePlace(folder, f"encl{secrets.token_hex(4)}", f"{net}.1", f"{net}.2")


class PrivateEngine:
    """Start it under a supervisor; `enter` builds commands that run inside its namespaces."""

    def __init__(self, place: EnginePlace, *, pulls_from: str | None = None) -> None:
        """``pulls_from``: a registry that dockerd itself may reach, to measure it; by default it has no network."""
        self.place = place
        self._pulls_from = pulls_from
        self._space = Space("namespaces")

    async def start(self, supervisor: Supervisor, nursery: trio.Nursery) -> None:
        paths = self.place.paths
        paths.write(self._settings())
        await self._space.start(supervisor, nursery)
        await self._join_networks()
        joined = joining(group_of_cores(f"{self.place.name}-engine", ENGINE_PERCENT))
        await supervisor.start(
            nursery,
            Program(
                "containerd",
                [*joined, *self.enter(paths.containerd_command())],
                after=("namespaces",),
                ready=lambda: socket_answers(paths.containerd_socket),
            ),
        )
        await supervisor.start(
            nursery,
            Program(
                "dockerd",
                [*joined, *self.enter(paths.dockerd_command())],
                after=("containerd",),
                ready=lambda: docker_answers(self.place.socket),
            ),
        )
        await self._fence()

    def enter(self, command: list[str], *, network: bool = True) -> list[str]:
        """The command, inside the engine's mounts and processes (and, by default, its network)."""
        return self._space.enter(command, network=network)

    def clean_up(self) -> None:
        """After everything stopped: cgroups and the folder."""
        for root in [_CGROUP, *(_CGROUP / name for name in _CONTROLLERS_V1)]:
            for name in (f"{self.place.name}-engine", self.place.name):
                _remove_cgroup(root / name)
        shutil.rmtree(self.place.folder, ignore_errors=True)

    async def _join_networks(self) -> None:
        name, place = self.place.name, self.place
        await self._space.join_here(
            f"{name}h", place.host_address, f"{name}e", place.engine_address
        )
        await self._space.do(f"ip route add default via {place.host_address}")

    def _settings(self) -> EngineSettings:
        registries = (self._pulls_from,) if self._pulls_from else ()
        return EngineSettings(self.place.cgroup_parent, registries)

    async def _fence(self) -> None:
        """Containers reach the public internet and nothing else; of the engine itself only their channel."""
        known = ["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"]
        rules = []
        # Where tenants are, and where somebody at the socket may put another container.
        for bridge in ("docker0", "br-+"):
            here = ["-i", bridge]
            channel = ["-p", "tcp", "--dport", str(CONTAINER_PORT), "-j", "ACCEPT"]
            rules += [["-I", "INPUT", *here, "-j", "DROP"], ["-I", "INPUT", *here, *channel]]
            rules += [["-I", "DOCKER-USER", *here, "-d", net, "-j", "DROP"] for net in _PRIVATE]
        rules += [["-I", chain, *known] for chain in ("INPUT", "DOCKER-USER")]
        for rule in rules:
            await run(*self.enter(["iptables", "-w", *rule]))
        if self._pulls_from is None:
            await self._cut_off()

    async def _cut_off(self) -> None:
        """dockerd answers on its socket and asks nobody: images are brought to it."""
        outwards = ["-A", "OUTPUT", "-o", f"{self.place.name}e"]
        for rule in (
            ["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"],
            ["-m", "owner", "--gid-owner", str(SERVER_GID), "-j", "ACCEPT"],
            ["-j", "REJECT"],
        ):
            await run(*self.enter(["iptables", "-w", *outwards, *rule]))


def _remove_cgroup(path: Path) -> None:
    if not path.is_dir():
        return
    for child, _, _ in os.walk(path, topdown=False):
        try:
            Path(child).rmdir()
        except OSError:
            pass  # a process is still leaving; the next run's name is another one


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
