"""What ``enclaved verify`` found, for a person and for a program."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from bot.terminal import printable
from nips.tee.verdict import Check, Outcome

_MARKS = {Outcome.HOLDS: "✓", Outcome.FAILS: "✗", Outcome.ABSENT: "–"}


class Answer(Enum):
    """The three answers, with their exit codes."""

    VALID = 0
    NOT_VALID = 1
    COULD_NOT_CHECK = 2


@dataclass(frozen=True)
class Report:
    """``facts``: what was established, ready for JSON."""

    answer: Answer
    sentence: str
    checks: tuple[Check, ...]
    facts: dict[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """For programs: read ``answer``, not the words."""
        checks = [
            {"name": c.name, "outcome": c.outcome.value, "evidence": c.evidence}
            for c in self.checks
        ]
        answer = self.answer.name.lower().replace("_", " ")
        return {"answer": answer, "sentence": self.sentence, "checks": checks} | self.facts

    def lines(self) -> list[str]:
        """One line a step, and the sentence: an event must not write a verdict of its own."""
        steps = [f"{_MARKS[c.outcome]} {c.name}: {c.evidence}" for c in self.checks]
        return [printable(line) for line in [*steps, self.sentence]]


def say_silent(relay_urls: Sequence[str]) -> str:
    """What was not heard: nobody knows what these relays hold."""
    return f"{', '.join(relay_urls)} could not be reached, or did not answer in time"
