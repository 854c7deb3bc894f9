"""The way from power-on to ready, as a list: where it is, how long each step took, and why it stands still.

Two processes walk it, see docs/adr/0025: ``enclaved boot`` up to dockerd, and the server, which alone holds keys, from there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import structlog

log = structlog.get_logger()


class Step(StrEnum):
    """In order."""

    PARENT = "parent"
    MEMORY = "memory"
    MOUNTS = "mounts"
    NETWORK = "network"
    RESOLVER = "resolver"
    CLOCK = "clock"
    CONTAINERD = "containerd"
    DOCKERD = "dockerd"
    STANDING = "standing"
    ESCROW = "escrow"
    RESTORE = "restore"
    SERVER = "server"
    CHECKPOINTS = "checkpoints"
    READY = "ready"


# Whose step it is. The server's begin when boot waits for it.
OF_BOOT = tuple(Step)[: tuple(Step).index(Step.STANDING)]
OF_SERVER = tuple(Step)[len(OF_BOOT) :]


@dataclass
class Steps:
    """``monotonic`` gives seconds. A step begins with `reach` and lasts until the next."""

    monotonic: Callable[[], float]
    # What each step took, in the order in which they ended.
    took_s: dict[Step, float] = field(default_factory=dict)
    now_at: Step | None = None
    # Why it does not go on; None while it does.
    halted: str | None = None
    _began_s: float = 0.0

    def reach(self, step: Step) -> None:
        """The step before is done. One that was reached already, as after a restart, begins anew."""
        self.halted = None
        if step is self.now_at:
            return
        self._end()
        self.now_at, self._began_s = step, self.monotonic()
        log.info("step", step=step.value)

    def finish(self) -> None:
        """The last of ours is done."""
        self._end()
        self.now_at = None

    def halt(self, reason: str) -> None:
        """It stands still; if only for now, the next step to be reached says that it goes on. Who says so, logs it."""
        self.halted = reason

    def _end(self) -> None:
        if self.now_at is not None:
            self.took_s[self.now_at] = round(self.monotonic() - self._began_s, 3)
            log.info("step done", step=self.now_at.value, took_s=self.took_s[self.now_at])

    def words(self) -> dict[str, object]:
        """As JSON: ``{"step", "halted", "took_s": {step: seconds}}``."""
        return {
            "step": self.now_at and self.now_at.value,
            "halted": self.halted,
            "took_s": {step.value: seconds for step, seconds in self.took_s.items()},
        }
