"""A lane for what takes long because others must answer first: a few at a time for each caller, and in all.

Whoever does not fit is refused at once: waiting here would hold up those who ask for nothing slow. One lane for each
sort of others: whoever fills the one to the registries takes nobody's top-up or withdrawal away.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum


class WaitsFor(Enum):
    """Who must answer."""

    REGISTRY = "registry"
    WALLET = "wallet"
    MODULE = "module"


@dataclass
class SlowLane:
    """Counts who is in it."""

    at_once: int
    of_caller: int = 4
    _callers: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def enter(self, caller: str) -> Iterator[bool]:
        """Whether there is room; it is given back in the end."""
        fits = self._callers[caller] < self.of_caller and self._callers.total() < self.at_once
        if fits:
            self._callers[caller] += 1
        try:
            yield fits
        finally:
            if fits:
                self._callers[caller] -= 1
            # Who is not in it is forgotten.
            self._callers = +self._callers


def slow_lanes() -> Mapping[WaitsFor, SlowLane]:
    """All together stay below what the server answers at once, so that what is quick always has a place.

    Registries share places by host among those who wait, and refuse the rest: theirs is wider than that line.
    """
    widths = {
        WaitsFor.REGISTRY: 128,
        WaitsFor.WALLET: 64,
        WaitsFor.MODULE: 16,
    }
    return {waits_for: SlowLane(width) for waits_for, width in widths.items()}
