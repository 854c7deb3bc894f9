"""How many units there are to sell, and who may hold them unpaid."""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Capacity:
    """``total_units`` of this machine; unpaid containers hold units only a few at a time."""

    total_units: int = 100
    max_units_per_container: int = 50
    # One key may hold so many unpaid containers, with so many units in all, within an invoice's life: also
    # those that it let go again.
    max_waiting_per_caller: int = 3
    max_waiting_units_per_caller: int = 50
    # Unpaid containers together may hold this share of all units.
    max_waiting_percent: int = 50


class NoCapacity(Enum):
    """Why units cannot be reserved."""

    NOT_ENOUGH_UNITS = "unavailable: not enough free units; try fewer, or later"
    NO_PORTS = "unavailable: no ports are free"
    UNPAID_FULL = "unavailable: too many units wait for payment; try again in some minutes"
    TOO_MANY_WAITING = "rate-limited: pay for, or let expire, what you have deployed already"


def reserve(capacity: Capacity, *, held_units: int, units: int) -> NoCapacity | None:
    """None when the units may be taken. Call it in the transaction that then writes the taking."""
    return NoCapacity.NOT_ENOUGH_UNITS if held_units + units > capacity.total_units else None


def reserve_unpaid(
    capacity: Capacity,
    *,
    held_units: int,
    waiting_units: int,
    unpaid_of_caller: int,
    unpaid_units_of_caller: int,
    units: int,
) -> NoCapacity | None:
    """As `reserve`, for a place that is not paid yet: a little per caller, and a share of all in total."""
    if unpaid_of_caller >= capacity.max_waiting_per_caller:
        return NoCapacity.TOO_MANY_WAITING
    if unpaid_units_of_caller + units > capacity.max_waiting_units_per_caller:
        return NoCapacity.TOO_MANY_WAITING
    if (waiting_units + units) * 100 > capacity.total_units * capacity.max_waiting_percent:
        return NoCapacity.UNPAID_FULL
    return reserve(capacity, held_units=held_units, units=units)
