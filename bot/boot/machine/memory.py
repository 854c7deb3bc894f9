"""Whether memory suffices for everything that is promised from it. Pure.

An enclave's disk is its memory. What is promised twice is not refused by the kernel but taken from whoever is killed for it,
dockerd first; so the sum is made before anything starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from handlers.domain.limits import UnitSize, limits_for

# ext4 on a container's images, and the tail of a page of each of them.
_OVERHEAD_PERCENT = 2


@dataclass(frozen=True)
class Share:
    """A part of memory that is spoken for."""

    what: str
    bytes: int


def disks_bytes(units: int, size: UnitSize) -> int:
    """What the images of all units together take: layers and volumes, preallocated."""
    limits = limits_for(units, size)
    return (limits.disk_bytes + limits.volume_bytes) * (100 + _OVERHEAD_PERCENT) // 100


def containers_bytes(units: int, size: UnitSize) -> int:
    """What containers may use at most, all of them together."""
    return limits_for(units, size).memory_bytes


def why_not_enough(shares: Sequence[Share], have_bytes: int) -> str | None:
    """None when all of them fit together."""
    wanted = sum(share.bytes for share in shares)
    if wanted <= have_bytes:
        return None
    told = ", ".join(f"{share.what} {_mib(share.bytes)}" for share in shares)
    return (
        f"memory is {_mib(have_bytes)} MiB, and {_mib(wanted)} MiB are promised ({told}): "
        "give the enclave more memory, or sell fewer units (policy.capacity.total_units)"
    )


def _mib(size: int) -> int:
    return -(-size // (1 << 20))
