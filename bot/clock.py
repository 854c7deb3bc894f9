"""The only place where clocks are read. Everything else is given the time."""

import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """What is given the time instead: the one below, or one that tests turn by hand."""

    def now(self) -> int: ...
    def boot_ms(self) -> int: ...


class SystemClock:
    """Unix seconds, and milliseconds since boot that no wall-clock step moves."""

    def now(self) -> int:
        return int(time.time())

    def boot_ms(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def boot_id() -> str:
    """Names this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
