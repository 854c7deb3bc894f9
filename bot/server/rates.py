"""How much somebody may ask in a time: buckets that hold ``burst`` and refill ``per_minute``, by caller and in all."""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """Of one bucket."""

    burst: int
    per_minute: int


@dataclass
class _Bucket:
    tokens: float
    filled_at: int

    def take(self, rate: Rate, now: int) -> bool:
        # A clock that steps back must not refill anything.
        elapsed_s = max(0, now - self.filled_at)
        self.tokens = min(rate.burst, self.tokens + elapsed_s * rate.per_minute / 60)
        self.filled_at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Rates:
    """In memory, of the ``most`` callers that asked last. Times are Unix seconds."""

    def __init__(self, each: Rate, in_all: Rate, most: int = 10_000) -> None:
        self._each, self._in_all, self._most = each, in_all, most
        self._callers: OrderedDict[str, _Bucket] = OrderedDict()
        self._total = _Bucket(in_all.burst, 0)

    def allow(self, caller: str, now: int) -> bool:
        """Whether that caller may ask now; it is counted if so. Who is over his own rate uses up nobody else's."""
        bucket = self._callers.pop(caller, None) or _Bucket(self._each.burst, now)
        self._callers[caller] = bucket
        if len(self._callers) > self._most:
            self._callers.popitem(last=False)
        return bucket.take(self._each, now) and self._total.take(self._in_all, now)
