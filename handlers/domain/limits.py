"""What a unit is: a share of CPU, memory, processes and disk."""

from dataclasses import dataclass

MB = 1_000_000
CPU_PERIOD_US = 100_000
# Of one process: more than fs.nr_open, as kernels have it, no limit may say.
MOST_FILES = 1_048_576


@dataclass(frozen=True)
class UnitSize:
    """What one unit buys. 100 units make a machine of 10 cores and 5 GB."""

    cpu_permille: int = 100
    memory_bytes: int = 50 * MB
    pids: int = 10
    nofile: int = 256
    disk_bytes: int = 50 * MB
    volume_bytes: int = 10 * MB


@dataclass(frozen=True)
class Limits:
    """What a container gets. CPU is a quota in microseconds per `CPU_PERIOD_US`."""

    cpu_quota_us: int
    memory_bytes: int
    pids: int
    # Open files of one process.
    nofile: int
    disk_bytes: int
    volume_bytes: int


def limits_for(units: int, size: UnitSize) -> Limits:
    """Everything grows with the units; pids get a floor so that an init and a shell always fit, open files one that
    ordinary servers expect."""
    return Limits(
        cpu_quota_us=units * size.cpu_permille * CPU_PERIOD_US // 1_000,
        memory_bytes=units * size.memory_bytes,
        pids=max(16, units * size.pids),
        nofile=min(max(1_024, units * size.nofile), MOST_FILES),
        disk_bytes=units * size.disk_bytes,
        volume_bytes=units * size.volume_bytes,
    )


def image_room(limits: Limits) -> int:
    """What an image may take unpacked, in bytes: four fifths of the disk."""
    return limits.disk_bytes * 4 // 5


def image_fits(image_bytes: int, limits: Limits) -> bool:
    """Whether an image has room. Its compressed size is only a lower bound, the rest shows when it comes."""
    return image_bytes <= image_room(limits)
