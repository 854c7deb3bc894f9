"""What the engine must do so that it matches the store. Safe to compute and carry out at any moment."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from handlers.domain.lifecycle import Standing, State


class Live(Enum):
    """What the engine says of a container of ours."""

    RUNNING = "running"
    EXITED = "exited"
    CREATED = "created"  # made but never started: we crashed in between
    RESTARTING = "restarting"
    REMAINS = "remains"  # only volumes or a network are left


@dataclass(frozen=True)
class Wanted:
    """What the store says."""

    state: State
    generation: int
    standing: Standing


@dataclass(frozen=True)
class Found:
    """What the engine says. ``generation`` is the label it was created with."""

    live: Live
    generation: int
    restarts: int = 0


class Do(Enum):
    """One action for one container."""

    START = "start"  # pull if missing, create if missing, start
    RECREATE = "recreate"  # remove the container, keep its volumes, start anew
    HALT = "halt"  # stop, keep container and volumes
    REMOVE = "remove"  # remove container, volumes and network
    GIVE_UP = "give up"  # it does not stay up: tell the store


# Docker restarts a failing container this often before we look.
MAX_RESTARTS = 3


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
    if have is None or have.live is Live.REMAINS:
        return Do.START
    if have.generation != want.generation:
        return Do.RECREATE
    match have.live:
        case Live.RUNNING:
            return None
        case Live.CREATED | Live.REMAINS:
            return Do.START
        case Live.EXITED:
            # One that stayed up before gets another run, which must show it again.
            return Do.GIVE_UP if want.standing is Standing.STARTED else Do.START
        case Live.RESTARTING:
            return (
                Do.GIVE_UP
                if have.restarts >= MAX_RESTARTS and want.standing is not Standing.PROVEN
                else None
            )
