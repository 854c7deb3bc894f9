"""What the kernel has only once for the whole machine, and one tenant could use up for all the others.

Each of these things is bounded by what its user has anyway: memory, open files, addresses to ask for. So the machine's
own limit may be as high as all units together could go, and then nobody can take anything from anybody.
"""

from dataclasses import dataclass
from pathlib import Path

from bot.adapters.engine.bridge import MOST_ADDRESSES
from handlers.domain.limits import UnitSize, limits_for

# The least that one of them takes of its container's memory.
_WATCH_BYTES, _AIO_EVENT_BYTES = 1_024, 32

PROC_SYS = Path("/proc/sys")


@dataclass(frozen=True)
class Shortage:
    """``have`` is less than what all units together could use."""

    sysctl: str
    have: int
    wanted: int

    def __str__(self) -> str:
        return f"{self.sysctl} is {self.have}, all units together could use {self.wanted}"


def wanted(units: int, size: UnitSize) -> dict[str, int]:
    """By sysctl, what all units of the machine could use, taken by as many containers as possible."""
    one = limits_for(1, size)
    return {
        # Descriptors, all of them.
        "fs.inotify.max_user_instances": units * one.pids * one.nofile,
        "fs.inotify.max_user_watches": units * one.memory_bytes // _WATCH_BYTES,
        "fs.aio-max-nr": units * one.memory_bytes // _AIO_EVENT_BYTES,
        # Each container asking for every address of the bridge.
        "net.ipv4.neigh.default.gc_thresh3": units * MOST_ADDRESSES,
    }


def make_room(units: int, size: UnitSize, root: Path = PROC_SYS) -> None:
    """Raise what is too low: where the machine is ours alone. Raises OSError."""
    for short in shortages(units, size, root):
        _file(root, short.sysctl).write_text(str(short.wanted))


def shortages(units: int, size: UnitSize, root: Path = PROC_SYS) -> list[Shortage]:
    """What this machine has too little of. What cannot be read is not there, and so cannot be used up."""
    short = []
    for sysctl, number in wanted(units, size).items():
        try:
            have = int(_file(root, sysctl).read_text())
        except (OSError, ValueError):
            continue
        if have < number:
            short.append(Shortage(sysctl, have, number))
    return short


def _file(root: Path, sysctl: str) -> Path:
    return root / sysctl.replace(".", "/")
