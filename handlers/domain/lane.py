"""Lanes for what takes long because others must answer first: a few at a time for each caller, and in all.

One for each of those others: who waits for his money is not kept waiting by those who ask a registry that drips.
Whoever does not fit is refused at once: waiting here would hold up those who ask for nothing slow.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum


class WaitsFor(Enum):
    """Who must answer first."""

    REGISTRY = "a registry, and whom the image names"
    INVOICE = "the wallet, for an invoice"
    PAYMENT = "the wallet, for a payment"
    MODULE = "the security module"


class Room(Enum):
    """Whether there is any."""

    FITS = "fits"
    CALLER_FULL = "wait for the answers to what you asked before"
    LANE_FULL = "others' requests of this kind take long; retry in a moment"


# All together stay below what the server answers at once (256), so that what is quick always has a place. Registries
# share places by host among those who wait, and refuse the rest: theirs is wider than that line.
WIDTHS: Mapping[WaitsFor, int] = {
    WaitsFor.REGISTRY: 128,
    WaitsFor.INVOICE: 32,
    WaitsFor.PAYMENT: 32,
    WaitsFor.MODULE: 16,
}


@dataclass
class SlowLanes:
    """Counts who is in which."""

    widths: Mapping[WaitsFor, int] = field(default_factory=lambda: WIDTHS)
    of_caller: int = 4
    _inside: Counter[tuple[WaitsFor, str]] = field(default_factory=Counter)
    _lanes: Counter[WaitsFor] = field(default_factory=Counter)

    @contextmanager
    def enter(self, lane: WaitsFor, caller: str) -> Iterator[Room]:
        """Whether there is room; it is given back in the end."""
        room = self._room(lane, caller)
        taken = int(room is Room.FITS)
        self._move(lane, caller, taken)
        try:
            yield room
        finally:
            self._move(lane, caller, -taken)

    def _room(self, lane: WaitsFor, caller: str) -> Room:
        if self._inside[lane, caller] >= self.of_caller:
            return Room.CALLER_FULL
        return Room.LANE_FULL if self._lanes[lane] >= self.widths[lane] else Room.FITS

    def _move(self, lane: WaitsFor, caller: str, by: int) -> None:
        self._inside[lane, caller] += by
        self._lanes[lane] += by
        if not self._inside[lane, caller]:
            # Who is not in it is forgotten.
            del self._inside[lane, caller]
