"""DEVELOPMENT ONLY. Machines made of namespaces: a wire between some, and one that boots an image as its root.

Each has a first process that ends when we end, however we end; with it everything goes that was started inside.
"""

import os
import secrets
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import trio

from bot.boot.supervisor import Program, Supervisor

CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = (
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "systemd",
)
POWER_ON = Path(__file__).with_name("power_on.sh")
OFF_S = 20


class Space:
    """A network, with mounts and processes of its own. `start` it under a supervisor. ``network``: one that is there already,
    by its file."""

    def __init__(self, name: str, network: Path | None = None) -> None:
        self.name, self._network = name, network
        self._supervisor: Supervisor | None = None
        self.pid = 0

    async def start(self, supervisor: Supervisor, nursery: trio.Nursery) -> None:
        self._supervisor = supervisor
        setup = "exec tini -s -- cat"
        spaces = ["--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        # Not by `ip netns exec`: it mounts a /sys without cgroups.
        entered = [] if self._network is None else ["nsenter", f"--net={self._network}"]
        if self._network is None:
            setup = f"ip link set lo up && sysctl -qw net.ipv4.ip_forward=1 && {setup}"
            spaces.append("--net")
        command = [*entered, "unshare", *spaces, "--propagation", "private", "sh", "-c", setup]
        await supervisor.start(
            nursery, Program(self.name, command, ready=self._find, holds_stdin=True)
        )

    async def _find(self) -> bool:
        """Its first process is the child of the one that made it, once that became tini."""
        assert self._supervisor is not None
        self.pid = _only_child(self._supervisor.pid(self.name)) or 0
        return self.pid != 0 and _comm(self.pid) == "tini"

    def enter(self, command: list[str], *, network: bool = True) -> list[str]:
        """The command, inside."""
        spaces = ["-m", "-p", *(["-n"] if network else [])]
        return ["nsenter", "-t", str(self.pid), *spaces, "--", *command]

    async def join_here(self, device: str, address: str, inner: str, other: str) -> None:
        """A wire between this machine and the inside, and the address of each end, in a network of four."""
        await run(
            "ip",
            "link",
            "add",
            device,
            "type",
            "veth",
            "peer",
            "name",
            inner,
            "netns",
            str(self.pid),
        )
        await run("ip", "addr", "add", f"{address}/30", "dev", device)
        await run("ip", "link", "set", device, "up")
        await self.do(f"ip addr add {other}/30 dev {inner}", f"ip link set {inner} up")

    async def do(self, *commands: str) -> None:
        for command in commands:
            await run(*self.enter(command.split()))


async def run(*command: str) -> None:
    await trio.run_process(command, capture_stderr=True, capture_stdout=True)


async def join(here: Space, address: str, there: Space, other: str, bits: int) -> None:
    """A wire between two of them, and the address of each end."""
    # By this machine's numbers of processes: inside, others count.
    await run(
        "nsenter", "-t", str(here.pid), "-n", "ip", "link", "add", f"to-{there.name}",
        "type", "veth", "peer", "name", f"to-{here.name}", "netns", str(there.pid),
    )  # fmt: skip
    for space, peer, own in ((here, there, address), (there, here, other)):
        await space.do(
            f"ip addr add {own}/{bits} dev to-{peer.name}", f"ip link set to-{peer.name} up"
        )


@dataclass
class Booted:
    """A machine whose root is an image: network, mounts, processes, hostname and control groups of its own."""

    folder: Path
    image: Path
    # Its name is also that of its control groups.
    name: str = field(default_factory=lambda: f"enclave{secrets.token_hex(4)}")
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        for name in ("vsock", "nsm", "log", "memory"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def outside(self, wire: str) -> Path:
        """The parent's end of what stands for the vsock: a socket."""
        return self.folder / ("nsm" if wire == "nsm" else "vsock") / f"{wire}.sock"

    def inside(self, wire: str) -> str:
        """The enclave's end, as an address."""
        return f"unix:/run/{'nsm' if wire == 'nsm' else 'vsock'}/{wire}.sock"

    @property
    def module(self) -> dict[str, str]:
        """As the configuration names who attests it."""
        return {"nsm": self.inside("nsm").removeprefix("unix:")}

    def power_on(self, layer: Path) -> None:
        """``layer`` lies over the image. Nothing of an earlier life is left but what the folder shares."""
        groups = list(self._make_groups())
        join_groups = 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"'
        spaces = ["--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--fork"]
        command = [
            "sh", "-c", join_groups, "sh", *groups, "--",
            "unshare", *spaces, "--kill-child=SIGKILL", "--propagation", "private",
            "sh", str(POWER_ON), str(self.image), str(layer), str(self.folder), self.name,
        ]  # fmt: skip
        with (self.folder / "log/console.log").open("ab") as console:
            # Not a session of its own: it ends with us.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )

    def _make_groups(self) -> list[str]:
        found = []
        for root in (CGROUPS / name for name in CONTROLLERS):
            group = root / self.name
            group.mkdir(exist_ok=True)
            if root.name == "cpuset":
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (group / file).write_text((root / file).read_text())
            found.append(str(group / "cgroup.procs"))
        return found

    @property
    def is_on(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def first_pid(self) -> int:
        """Of its first process, as this machine counts; 0 before there is one."""
        return _only_child(self._process.pid) or 0 if self._process is not None else 0

    def cut_power(self) -> None:
        """Everything ends at once. A frozen process does not die on v1: it is thawed while we wait."""
        if self._process is None:
            return
        if first := self.first_pid():
            os.kill(first, signal.SIGKILL)
        else:
            self._process.kill()
        give_up = time.monotonic() + OFF_S
        while self._process.poll() is None and time.monotonic() < give_up:
            self._thaw()
            time.sleep(0.02)
        self._process.kill()
        self._process.wait()
        self._process = None
        self._remove_groups()

    async def ended(self) -> None:
        """It switched itself off."""
        while self.is_on:  # noqa: ASYNC110 - a process of another library's has no event
            await trio.sleep(0.05)
        self.cut_power()

    def _thaw(self) -> None:
        for state in (CGROUPS / "freezer" / self.name).rglob("freezer.state"):
            try:
                state.write_text("THAWED")
            except OSError:
                pass  # it went meanwhile

    def _remove_groups(self) -> None:
        for root in (CGROUPS / name / self.name for name in CONTROLLERS):
            give_up = time.monotonic() + 2
            while root.exists() and time.monotonic() < give_up:
                for folder, _, _ in os.walk(root, topdown=False):
                    try:
                        Path(folder).rmdir()
                    except OSError:
                        pass  # its processes are still leaving
                time.sleep(0.01)


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
