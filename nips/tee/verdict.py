"""A verdict: every check that was made, with its outcome and the evidence. A value, not a boolean.

An examination runs rules one after another. A rule returns what it established or raises `BadInput`
with the reason; either way it leaves one line behind. A verdict in which nothing holds is not valid:
nothing examined means nothing proved.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from nips.errors import BadInput

T = TypeVar("T")


class Outcome(Enum):
    """ABSENT: not claimed by anybody, so there is nothing to hold; a policy may demand it."""

    HOLDS = "holds"
    FAILS = "fails"
    ABSENT = "absent"


@dataclass(frozen=True)
class Check:
    """One rule, whether it held, and by what evidence or for what reason."""

    name: str
    outcome: Outcome
    evidence: str


@dataclass(frozen=True)
class Verdict:
    """The checks in the order in which they were made."""

    checks: tuple[Check, ...]

    @property
    def is_valid(self) -> bool:
        """At least one check that holds, and none that fails."""
        holding = any(check.outcome is Outcome.HOLDS for check in self.checks)
        return holding and not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """What does not hold."""
        return tuple(check for check in self.checks if check.outcome is Outcome.FAILS)

    @property
    def reason(self) -> str:
        """The first failure in words; empty for a valid verdict."""
        if self.is_valid:
            return ""
        told = (f"{check.name}: {check.evidence}" for check in self.failures)
        return next(told, "nothing was examined")


class Examination:
    """Collects checks."""

    def __init__(self) -> None:
        self._checks: list[Check] = []

    def examine(
        self, name: str, rule: Callable[[], T], evidence: Callable[[T], str] = str
    ) -> T | None:
        """What the rule established, or None when it failed."""
        try:
            found = rule()
        except BadInput as error:
            self.note(name, Outcome.FAILS, str(error))
            return None
        self.note(name, Outcome.HOLDS, evidence(found))
        return found

    def note(self, name: str, outcome: Outcome, evidence: str) -> None:
        """A check that was made elsewhere."""
        self.add(Check(name, outcome, evidence))

    def add(self, check: Check) -> None:
        """A check as a value."""
        self._checks.append(check)

    def verdict(self) -> Verdict:
        """All so far."""
        return Verdict(tuple(self._checks))
