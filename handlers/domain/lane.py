"""A lane for what takes long because others must answer first: a few at a time for each caller, and in all.

Whoever does not fit is refused at once: waiting here would hold up those who ask for nothing slow.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class SlowLane:
    """Counts who is in it."""

    at_once: int = 64
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
