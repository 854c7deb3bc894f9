"""A container that must run: what it has shown of that, and what follows when it ends by itself.

Free are only the first tries of an image that never stayed up: nobody pays for what does not work. Whoever stayed up
once is charged for every run from its start, else dying early again and again would be free hosting. Each end puts the
next try off for longer, and after many in a row the place is given to somebody else.
"""

from dataclasses import dataclass
from enum import Enum

FREE_TRIES = 3
MAX_CRASHES = 12
LONGEST_WAIT_S = 300
# Its admin hears of a series once, when it is no accident any more.
TELL_AT = 3


class Progress(Enum):
    """Whether a container that must run has shown that it can."""

    DUE = "due"  # to be started; what the engine has of it is from before
    STARTED = "started"  # started, not yet up for long enough
    PROVEN = "proven"  # it stayed up


@dataclass(frozen=True)
class Trial:
    """``proven``: it stayed up once, ever. ``crashes``: ends in a row; a run that stays up for long ends the row."""

    progress: Progress = Progress.DUE
    proven: bool = False
    crashes: int = 0
    retry_at: int = 0  # Unix time before which it is not started again

    @property
    def is_charged_from_start(self) -> bool:
        """Whether a run costs something even if it does not stay up."""
        return self.proven or self.crashes >= FREE_TRIES

    @property
    def is_hopeless(self) -> bool:
        """Whether it is not to be tried any more."""
        return self.crashes >= (MAX_CRASHES if self.proven else FREE_TRIES)


def asked_for(trial: Trial) -> Trial:
    """Somebody wants it to run: at once. Free tries are not given a second time."""
    return Trial(Progress.DUE, trial.proven, 0 if trial.proven else trial.crashes)


def started(trial: Trial) -> Trial:
    """The engine started it."""
    return Trial(Progress.STARTED, trial.proven, trial.crashes)


def stayed_up(trial: Trial, *, long: bool) -> Trial:
    """Its run lasts; ``long``: for so long that what came before is forgotten."""
    return Trial(Progress.PROVEN, True, 0 if long else trial.crashes)


def ended(trial: Trial, now: int) -> Trial:
    """It ended by itself. The first time it is started again at once: most ends are accidents."""
    crashes = trial.crashes + 1
    wait_s = 0 if crashes == 1 else min(LONGEST_WAIT_S, 2 ** (crashes - 2))
    return Trial(Progress.DUE, trial.proven, crashes, now + wait_s)
