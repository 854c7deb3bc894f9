"""Host ports for what a container exposes: each port belongs to one container until that is deleted."""

from collections.abc import Collection
from dataclasses import dataclass

MAX_PORTS_PER_CONTAINER = 8


@dataclass(frozen=True)
class PortRange:
    """Host ports from ``first`` to ``last``, both included."""

    first: int = 20_000
    last: int = 29_999


def allocate(pool: PortRange, taken: Collection[int], count: int) -> list[int] | None:
    """The lowest free ports, or None when there are not enough."""
    occupied = frozenset(taken)
    found: list[int] = []
    for port in range(pool.first, pool.last + 1):
        if len(found) == count:
            break
        if port not in occupied:
            found.append(port)
    return found if len(found) == count else None
