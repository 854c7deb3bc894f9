"""Moves a container along its lifecycle, inside the caller's transaction, and tells its admin.

The only writer of ``state``: it looks up the table, reserves capacity where the step needs it, and
queues the notice in the same transaction, so that no crash can separate them.
"""

from dataclasses import replace

from handlers.context import Context, Policy
from handlers.domain.capacity import NoCapacity, reserve
from handlers.domain.ledger import container_account
from handlers.domain.lifecycle import (
    HOLDS_UNITS,
    Happening,
    State,
    needs_capacity,
    next_state,
)
from handlers.domain.ports_pool import allocate
from handlers.domain.pricing import sat_floor
from handlers.domain.trial import asked_for
from handlers.ports import Tx
from handlers.records import Container, PublishedPort
from nips.nip17 import wrap_message
from nips.nip19 import npub


def advance(
    tx: Tx, ctx: Context, row: Container, happening: Happening, now: int, reason: str | None = None
) -> Container | NoCapacity | None:
    """The saved row in its new state; None when nothing changes; `NoCapacity` when there is no room."""
    state = next_state(row.state, happening)
    if state is None:
        return None
    if needs_capacity(row.state, state):
        refusal = reserve(ctx.policy.capacity, held_units=tx.held_units(), units=row.units)
        if refusal is not None:
            return refusal
    ports = row.ports
    if state in HOLDS_UNITS and len(ports) < len(row.exposed):
        found = allocate(ctx.policy.ports, tx.taken_ports(), len(row.exposed))
        if found is None:
            return NoCapacity.NO_PORTS
        ports = tuple(map(PublishedPort, found, row.exposed))
        tx.take_ports(row.pubkey, ports)
    moved = replace(
        row,
        state=state,
        state_since=now,
        reason=reason,
        ports=ports,
        dirty=True,
        # Whatever leads here, a start is owed, and the run that follows must prove itself.
        trial=asked_for(row.trial),
        owed_since=now,
        generation=row.generation + (happening is Happening.RESTART_ASKED),
        stop_asked_at=None,
    )
    tx.save_container(moved)
    if state in (State.STOPPED, State.EXPIRED):
        tx.drop_ports(row.pubkey)
    text = _NOTICES.get(happening)
    if text is not None:
        tell_admin(tx, ctx, moved, text, now)
    return moved


_NOTICES = {
    Happening.BALANCE_OUT: "is paused: its balance is used up. Top it up and it runs again; its data is kept.",
    Happening.CANNOT_RUN: "cannot be run. It is charged only for what it ran.",
    Happening.GRACE_OVER: "has been paused for long: its place was given back, its data is still kept.",
    Happening.RETENTION_OVER: "was deleted with its data after its time was over.",
}


def tell_admin(tx: Tx, ctx: Context, row: Container, text: str, now: int) -> None:
    """Queue a private message (NIP-17) to the container's admin."""
    balance_sat = sat_floor(tx.balance(container_account(row.pubkey)))
    why = f" Reason: {row.reason}." if row.reason else ""
    message = f"{row.name} ({npub(row.pubkey)}) {text}{why} Balance: {balance_sat} sat."
    tx.enqueue(wrap_message(ctx.key, row.admin, message, now), ctx.places.relay_urls, now)


def is_covered(policy: Policy, row: Container, balance_msat: int) -> bool:
    """Whether the balance is enough to run."""
    return balance_msat >= needed_msat(policy, row)


def needed_msat(policy: Policy, row: Container) -> int:
    """What it takes to run: the first invoice's amount; a little running time after a pause; and what runs
    already goes on with whatever it has."""
    match row.state:
        case State.WAITING:
            return row.tariff.interval_msat(row.units)
        case State.DEPLOYED:
            return row.tariff.cost(row.units, policy.rhythm.tick_ms, 0)[0] + 1
        case _:
            return row.tariff.cost(row.units, policy.resume_ms, 0)[0]


def paid(tx: Tx, ctx: Context, pubkey: str, now: int) -> None:
    """After the balance rose: run the container if that is enough, or tell its admin why not."""
    row = tx.container(pubkey)
    if row is None:
        return
    row = replace(row, low_noticed=False, dirty=True)
    tx.save_container(row)
    if not is_covered(ctx.policy, row, tx.balance(container_account(pubkey))):
        return
    moved = advance(tx, ctx, row, Happening.PAID, now)
    if isinstance(moved, NoCapacity):
        text = "was paid, but there is no free place now: restart it later, or withdraw."
        tell_admin(tx, ctx, row, text, now)
    elif moved is None and row.state is not State.DEPLOYED:
        text = f"was paid while {row.state.value}: the money is yours to withdraw."
        tell_admin(tx, ctx, row, text, now)
