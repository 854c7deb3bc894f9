"""How many units there are to sell, and who may hold them unpaid."""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Capacity:
    """``total_units`` of this machine; unpaid containers hold units only a few at a time."""

    total_units: int = 100
    max_units_per_container: int = 50
    max_waiting_per_caller: int = 3


class NoCapacity(Enum):
    """Why units cannot be reserved."""

    NOT_ENOUGH_UNITS = "unavailable: not enough free units; try fewer, or later"
    TOO_MANY_WAITING = "rate-limited: pay for, or let expire, what you have deployed already"


def reserve(
    capacity: Capacity, *, held_units: int, waiting_of_caller: int, units: int
) -> NoCapacity | None:
    """None when the units may be taken. Call it in the transaction that then writes the taking."""
    if waiting_of_caller >= capacity.max_waiting_per_caller:
        return NoCapacity.TOO_MANY_WAITING
    if held_units + units > capacity.total_units:
        return NoCapacity.NOT_ENOUGH_UNITS
    return None
