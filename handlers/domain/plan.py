"""What the engine must do so that it matches the store. Safe to compute and carry out at any moment."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from handlers.domain.lifecycle import State
from handlers.domain.trial import Progress


class Live(Enum):
    """What the engine says of a container of ours."""

    RUNNING = "running"
    EXITED = "exited"
    CREATED = "created"  # made but never started: we crashed in between
    REMAINS = "remains"  # only volumes or a network are left


@dataclass(frozen=True)
class Wanted:
    """What the store says. ``may_start``: its time to be tried again has come."""

    state: State
    generation: int
    progress: Progress
    may_start: bool = True


@dataclass(frozen=True)
class Found:
    """What the engine says. ``generation`` is the label it was created with."""

    live: Live
    generation: int


class Do(Enum):
    """One action for one container."""

    START = "start"  # pull if missing, create if missing, start
    RECREATE = "recreate"  # remove the container, keep its volumes, start anew
    HALT = "halt"  # stop, keep container and volumes
    REMOVE = "remove"  # remove container, volumes and network
    NOTE_END = "note its end"  # it ended by itself: tell the store, which decides what follows


def plan(wanted: Mapping[str, Wanted], found: Mapping[str, Found]) -> dict[str, Do]:
    """One action per container at most; empty when engine and store agree."""
    actions = {pubkey: Do.REMOVE for pubkey in found if pubkey not in wanted}
    for pubkey, want in wanted.items():
        action = _action(want, found.get(pubkey))
        if action is not None:
            actions[pubkey] = action
    return actions


def _action(want: Wanted, have: Found | None) -> Do | None:
    match want.state:
        case State.DEPLOYED:
            return _must_run(want, have)
        case State.PAUSED | State.SHELVED | State.FAILED:
            halted = have is None or have.live in (Live.EXITED, Live.CREATED, Live.REMAINS)
            return None if halted else Do.HALT
        case State.WAITING | State.EXPIRED | State.STOPPED:
            return None if have is None else Do.REMOVE


def _must_run(want: Wanted, have: Found | None) -> Do | None:
    start = Do.START if want.may_start else None
    if have is None or have.live is Live.REMAINS:
        return start
    if have.generation != want.generation:
        return Do.RECREATE
    match have.live:
        case Live.RUNNING:
            return None
        case Live.CREATED:
            return start
        case Live.EXITED:
            return start if want.progress is Progress.DUE else Do.NOTE_END
