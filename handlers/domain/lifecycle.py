"""The life of a container, as a table. The diagram in ARCHITECTURE.md is drawn from it.

==========  ==========================================================  ===========  ==========
state       meaning                                                     holds units  on the wire
==========  ==========================================================  ===========  ==========
WAITING     deployed but not paid yet                                   yes          waiting
DEPLOYED    paid; must run                                              yes          deployed
PAUSED      the balance ran out; stopped, data kept, place kept         yes          paused
SHELVED     paused for long, or its balance was withdrawn; data kept    no           paused
EXPIRED     the first invoice was never paid in time                    no           paused
FAILED      the image cannot be run; nothing was charged for it         no           paused
STOPPED     deleted on its admin's order, or after too long a pause     no           paused
==========  ==========================================================  ===========  ==========

The balance is the admin's to withdraw in every state.
"""

from enum import Enum


class State(Enum):
    """Where a container is in its life."""

    WAITING = "waiting"
    DEPLOYED = "deployed"
    PAUSED = "paused"
    SHELVED = "shelved"
    EXPIRED = "expired"
    FAILED = "failed"
    STOPPED = "stopped"


class Happening(Enum):
    """What can happen to it."""

    PAID = "paid"  # the balance now covers running
    INVOICE_EXPIRED = "invoice expired"
    BALANCE_OUT = "balance out"
    BALANCE_TAKEN = "balance taken out"
    CANNOT_RUN = "cannot run"
    RESTART_ASKED = "restart asked"
    STOP_CONFIRMED = "stop confirmed"
    GRACE_OVER = "grace over"
    RETENTION_OVER = "retention over"


S, H = State, Happening

# A pair that is not here changes nothing: the happening comes too late or does not apply.
TABLE: dict[tuple[State, Happening], State] = {
    (S.WAITING, H.PAID): S.DEPLOYED,
    (S.WAITING, H.INVOICE_EXPIRED): S.EXPIRED,
    (S.WAITING, H.STOP_CONFIRMED): S.STOPPED,
    (S.DEPLOYED, H.BALANCE_OUT): S.PAUSED,
    (S.DEPLOYED, H.BALANCE_TAKEN): S.SHELVED,
    (S.PAUSED, H.BALANCE_TAKEN): S.SHELVED,
    (S.DEPLOYED, H.CANNOT_RUN): S.FAILED,
    (S.DEPLOYED, H.RESTART_ASKED): S.DEPLOYED,
    (S.DEPLOYED, H.STOP_CONFIRMED): S.STOPPED,
    (S.PAUSED, H.PAID): S.DEPLOYED,
    (S.PAUSED, H.RESTART_ASKED): S.DEPLOYED,
    (S.PAUSED, H.GRACE_OVER): S.SHELVED,
    (S.PAUSED, H.STOP_CONFIRMED): S.STOPPED,
    (S.SHELVED, H.PAID): S.DEPLOYED,
    (S.SHELVED, H.RESTART_ASKED): S.DEPLOYED,
    (S.SHELVED, H.RETENTION_OVER): S.STOPPED,
    (S.SHELVED, H.STOP_CONFIRMED): S.STOPPED,
    (S.EXPIRED, H.RESTART_ASKED): S.DEPLOYED,
    (S.EXPIRED, H.RETENTION_OVER): S.STOPPED,
    (S.EXPIRED, H.STOP_CONFIRMED): S.STOPPED,
    (S.FAILED, H.RESTART_ASKED): S.DEPLOYED,
    (S.FAILED, H.RETENTION_OVER): S.STOPPED,
    (S.FAILED, H.STOP_CONFIRMED): S.STOPPED,
}

HOLDS_UNITS = frozenset({S.WAITING, S.DEPLOYED, S.PAUSED})


def next_state(state: State, happening: Happening) -> State | None:
    """The state that follows, or None when the happening changes nothing."""
    return TABLE.get((state, happening))


def needs_capacity(state: State, following: State) -> bool:
    """Whether the step takes units out of the pool that were not held before."""
    return following in HOLDS_UNITS and state not in HOLDS_UNITS


def wire_state(state: State) -> str:
    """One of upstream's three words."""
    return state.value if state in (S.WAITING, S.DEPLOYED) else "paused"
