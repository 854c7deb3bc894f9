"""What the kernel's control groups say of a container: its processes, and the limits that are in force.

Both layouts: one tree per controller (v1), or one tree (v2). ``parent`` is as given to dockerd.
"""

from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
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
