"""Folders that grow, each a file system in memory of a size of its own: what fills one leaves the others as they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from bot.boot.machine.memory import Share, containers_bytes, disks_bytes
from bot.builtins import load_builtins
from bot.config import MachineConfig, images_folder
from handlers.context import own_units

log = structlog.get_logger()
_LIMITS = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Tmpfs:
    """In the order in which they are mounted: one may lie within another."""

    what: str
    where: Path
    bytes: int
    mode: int = 0o700


def units_of(config: MachineConfig) -> int:
    """What is for sale, and what the instance itself has beside it. Raises `ConfigError`."""
    own = load_builtins(config.server.builtins)
    return config.policy.capacity.total_units + own_units(own)


def tmpfs_of(config: MachineConfig) -> tuple[Tmpfs, ...]:
    """Everything of this enclave that grows."""
    boot, policy = config.boot, config.policy
    root = boot.data_root
    grown = [
        Tmpfs("state", config.server.state_dir, boot.state_bytes),
        Tmpfs("fetched", images_folder(config.server.state_dir), boot.fetched_bytes),
        # A dockerd with a full data root lists no containers when it starts again: its records are kept apart.
        Tmpfs("records", root, boot.records_bytes, 0o711),
        Tmpfs("layers", root / "overlay2", boot.layers_bytes, 0o710),
        Tmpfs("incoming", root / "tmp", boot.incoming_bytes),
    ]
    if config.engine.disks is not None:
        size = disks_bytes(units_of(config), policy.unit_size)
        grown.append(Tmpfs("disks", config.engine.disks, size, 0o711))
    return tuple(grown)


def shares_of(config: MachineConfig) -> list[Share]:
    """All that memory is promised to."""
    policy = config.policy
    return [
        *(Share(each.what, each.bytes) for each in tmpfs_of(config)),
        Share("containers", containers_bytes(units_of(config), policy.unit_size)),
        Share("reserve", config.boot.reserve_bytes),
    ]


def have_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or what our own control group may have of it."""
    have = [1024 * _total_kib((root / "proc/meminfo").read_text())]
    for path in _LIMITS:
        try:
            word = (root / path.lstrip("/")).read_text().strip()
        except OSError:
            continue
        have += [int(word)] if word.isdecimal() else []
    return min(have)


def _total_kib(meminfo: str) -> int:
    (line,) = (line for line in meminfo.splitlines() if line.startswith("MemTotal:"))
    return int(line.split()[1])


async def mount_missing(wanted: Sequence[Tmpfs]) -> None:
    """What is mounted stays as it is, with all that it holds. Raises OSError."""
    there = await trio.to_thread.run_sync(mount_points)
    for each in wanted:
        if str(each.where) in there:
            continue
        each.where.mkdir(parents=True, exist_ok=True)
        options = f"size={each.bytes},mode={each.mode:o},nosuid,nodev"
        done = await trio.run_process(
            ["mount", "-t", "tmpfs", "-o", options, each.what, str(each.where)],
            check=False,
            capture_stderr=True,
        )
        if done.returncode:
            raise OSError(f"{each.where}: {done.stderr.decode(errors='replace').strip()}")
        log.info("mounted", what=each.what, where=str(each.where), bytes=each.bytes)


def mount_points() -> frozenset[str]:
    """As the kernel has them now."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return frozenset(line.split()[1] for line in lines)
