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

from bot.boot.supervisor import Program, Supervisor

ENGINE_CORES = 1.0
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
        self._inner_pid = 0
        self._supervisor: Supervisor | None = None

    async def start(self, supervisor: Supervisor, nursery: trio.Nursery) -> None:
        folder = self.place.folder
        self._supervisor = supervisor
        self._write_configuration()
        await supervisor.start(
            nursery,
            Program("namespaces", self._holder(), ready=self._find_inner, holds_stdin=True),
        )
        await self._join_networks()
        joined = self._limited_cgroup()
        containerd = ["containerd", "-c", str(folder / "containerd.toml")]
        await supervisor.start(
            nursery,
            Program(
                "containerd",
                [*joined, *self.enter(containerd)],
                after=("namespaces",),
                ready=lambda: _socket_answers(folder / "containerd.sock"),
            ),
        )
        await supervisor.start(
            nursery,
            Program(
                "dockerd",
                [*joined, *self.enter(self._dockerd())],
                after=("containerd",),
                ready=lambda: _docker_answers(self.place.socket),
            ),
        )
        await self._fence()

    def enter(self, command: list[str], *, network: bool = True) -> list[str]:
        """The command, inside the engine's mounts and processes (and, by default, its network)."""
        spaces = ["-m", "-p", *(["-n"] if network else [])]
        return ["nsenter", "-t", str(self._inner_pid), *spaces, "--", *command]

    def clean_up(self) -> None:
        """After everything stopped: cgroups and the folder."""
        for root in [_CGROUP, *(_CGROUP / name for name in _CONTROLLERS_V1)]:
            for name in (f"{self.place.name}-engine", self.place.name):
                _remove_cgroup(root / name)
        shutil.rmtree(self.place.folder, ignore_errors=True)

    def _holder(self) -> list[str]:
        setup = "ip link set lo up && sysctl -qw net.ipv4.ip_forward=1 && exec tini -s -- cat"
        spaces = ["--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        return ["unshare", *spaces, "--propagation", "private", "sh", "-c", setup]

    async def _find_inner(self) -> bool:
        """The namespace's first process is the child of the one that made it, once that became tini."""
        assert self._supervisor is not None
        self._inner_pid = _only_child(self._supervisor.pid("namespaces")) or 0
        return self._inner_pid != 0 and _comm(self._inner_pid) == "tini"

    async def _join_networks(self) -> None:
        name, place = self.place.name, self.place
        outer, inner = f"{name}h", f"{name}e"
        await _run(
            [
                "ip",
                "link",
                "add",
                outer,
                "type",
                "veth",
                "peer",
                "name",
                inner,
                "netns",
                str(self._inner_pid),
            ]
        )
        await _run(["ip", "addr", "add", f"{place.host_address}/30", "dev", outer])
        await _run(["ip", "link", "set", outer, "up"])
        for command in (
            ["ip", "addr", "add", f"{place.engine_address}/30", "dev", inner],
            ["ip", "link", "set", inner, "up"],
            ["ip", "route", "add", "default", "via", place.host_address],
        ):
            await _run(["nsenter", "-t", str(self._inner_pid), "-n", "--", *command])

    def _write_configuration(self) -> None:
        folder = self.place.folder
        (folder / "containerd.toml").write_text(
            f'version = 2\nroot = "{folder}/containerd"\nstate = "{folder}/containerd-run"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{folder}/containerd.sock"\n'
        )
        (folder / "daemon.json").write_text(
            json.dumps(
                {
                    "live-restore": True,
                    "icc": False,
                    "userland-proxy": False,
                    "insecure-registries": [self._pulls_from] if self._pulls_from else [],
                    "default-address-pools": [{"base": "10.200.0.0/16", "size": 28}],
                    # One bridge for all tenants: as many as a bridge has ports.
                    "bip": "10.201.0.1/22",
                    "cgroup-parent": self.place.cgroup_parent,
                    "max-concurrent-downloads": 4,
                }
            )
        )

    def _dockerd(self) -> list[str]:
        f = self.place.folder
        return [
            "dockerd", "--config-file", f"{f}/daemon.json", "--containerd", f"{f}/containerd.sock",
            "--data-root", f"{f}/data", "--exec-root", f"{f}/exec", "-p", f"{f}/dockerd.pid",
            "-H", f"unix://{self.place.socket}", "--log-level", "warn",
        ]  # fmt: skip

    def _limited_cgroup(self) -> list[str]:
        """A command prefix that puts what follows into a cgroup with a CPU quota (v1 or v2)."""
        name = f"{self.place.name}-engine"
        if (_CGROUP / "cgroup.controllers").exists():
            group = _CGROUP / name
            group.mkdir()
            (group / "cpu.max").write_text(f"{int(ENGINE_CORES * 100_000)} 100000")
        else:
            group = _CGROUP / "cpu" / name
            group.mkdir()
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text(str(int(ENGINE_CORES * 100_000)))
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]

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
            await _run(self.enter(["iptables", "-w", *rule]))
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
            await _run(self.enter(["iptables", "-w", *outwards, *rule]))


def _only_child(parent: int) -> int | None:
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"\nPPid:\t{parent}\n" in status.read_text():
                return int(status.parent.name)
        except OSError:
            continue
    return None


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


async def _run(command: list[str]) -> None:
    await trio.run_process(command, capture_stderr=True)


async def _socket_answers(path: Path) -> bool:
    try:
        stream = await trio.open_unix_socket(path)
    except OSError:
        return False
    await stream.aclose()
    return True


async def _docker_answers(path: Path) -> bool:
    try:
        stream = await trio.open_unix_socket(path)
        async with stream:
            await stream.send_all(
                b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"
            )
            return b" 200 " in await stream.receive_some(1_024)
    except (OSError, trio.BrokenResourceError):
        return False


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
