"""What the kernel's control groups say of a container: its processes, and the limits that are in force.

Both layouts: one tree per controller (v1), or one tree (v2). ``parent`` is as given to dockerd.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from handlers.domain.limits import CPU_PERIOD_US

_ROOT = Path("/sys/fs/cgroup")
_STEP_S = 0.0005
_PROCESSES = (_ROOT / "cpuacct", _ROOT / "memory", _ROOT)
# A v1 file, else a v2 file.
_MEMORY = ("memory/{}/memory.limit_in_bytes", "{}/memory.max")
_PIDS = ("pids/{}/pids.max", "{}/pids.max")
_CPU = ("cpu/{}/cpu.cfs_quota_us", "{}/cpu.max")


@dataclass(frozen=True)
class Limited:
    """Limits as the kernel has them; None: none."""

    memory_bytes: int | None
    pids: int | None
    cpu_quota_us: int | None


def place(parent: str, container_id: str) -> str:
    """Where a container's files are, below the root of a tree."""
    return f"{parent.strip('/') or 'docker'}/{container_id}"


def pids(parent: str, container_id: str) -> list[int]:
    """Its processes, by the numbers of our own pid namespace; those that we cannot see are left out."""
    for root in _PROCESSES:
        try:
            text = (root / place(parent, container_id) / "cgroup.procs").read_text()
        except OSError:
            continue
        return [int(line) for line in text.split() if line != "0"]
    return []


def limits_of(parent: str, container_id: str) -> Limited:
    """The limits of a container's own group."""
    where = place(parent, container_id)
    return Limited(*(_number(where, files) for files in (_MEMORY, _PIDS, _CPU)))


def _number(where: str, files: tuple[str, str]) -> int | None:
    for file in files:
        try:
            word = (_ROOT / file.format(where)).read_text().split()[0]
        except (OSError, IndexError):
            continue
        return int(word) if word.isdecimal() else None
    return None


def group_of_cores(name: str, percent: int) -> Path:
    """A group whose processes together get so much of one core; the file that its members are written to. Raises OSError."""
    quota_us = CPU_PERIOD_US * percent // 100
    if (_ROOT / "cgroup.controllers").exists():
        _let_children_have_cpu()
        group = _ROOT / name
        group.mkdir(exist_ok=True)
        (group / "cpu.max").write_text(f"{quota_us} {CPU_PERIOD_US}")
    else:
        group = _ROOT / "cpu" / name
        group.mkdir(exist_ok=True)
        (group / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))
    return group / "cgroup.procs"


def _let_children_have_cpu() -> None:
    """On v2 a controller is passed down by word."""
    switch = _ROOT / "cgroup.subtree_control"
    if "cpu" not in switch.read_text().split():
        switch.write_text("+cpu")


def joining(group: Path) -> list[str]:
    """What a command is prefixed with so that it runs in a group."""
    return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group)]


class DoesNotStandStill(Exception):
    """A container's processes did not all stop in time; they run on."""


class Freezer:
    """A container's processes, stopped where they are. Blocking; raises `DoesNotStandStill`, and OSError where there is
    no such container."""

    def __init__(self, parent: str, container_id: str) -> None:
        where = place(parent, container_id)
        v1 = _ROOT / "freezer" / where / "freezer.state"
        self._is_v1 = v1.exists()
        self._switch = v1 if self._is_v1 else _ROOT / where / "cgroup.freeze"

    def freeze(self, within_s: float) -> None:
        self._switch.write_text("FROZEN" if self._is_v1 else "1")
        end = time.monotonic() + within_s
        while not self.is_frozen():
            if time.monotonic() > end:
                self.thaw()
                raise DoesNotStandStill(f"not within {within_s} s")
            time.sleep(_STEP_S)

    def is_frozen(self) -> bool:
        if self._is_v1:
            return self._switch.read_text().strip() == "FROZEN"
        return "frozen 1" in self._switch.with_name("cgroup.events").read_text()

    def thaw(self) -> None:
        self._switch.write_text("THAWED" if self._is_v1 else "0")
