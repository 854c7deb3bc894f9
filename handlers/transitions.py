"""Moves a container along its lifecycle, inside the caller's transaction, and tells its admin.

The only writer of ``state``: it looks up the table, reserves capacity where the step needs it, and
queues the notice in the same transaction, so that no crash can separate them.
"""

from dataclasses import replace

from handlers.context import Facts, Policy
from handlers.domain.capacity import NoCapacity, reserve
from handlers.domain.ledger import container_account
from handlers.domain.lifecycle import HOLDS_UNITS, Happening, State, needs_capacity, next_state
from handlers.domain.ports_pool import allocate
from handlers.domain.pricing import sat_floor
from handlers.domain.trial import asked_for
from handlers.patience import CLOCKS_DIFFER_S, LONGEST_WAIT_S
from handlers.records import Container, PublishedPort
from handlers.tables import Tx
from nips.nip19 import npub

_HOLDS_UNITS = tuple(HOLDS_UNITS)
# Out of these only a restart leads, which makes the container anew, with whatever ports it then gets.
_WITHOUT_PORTS = (State.STOPPED, State.EXPIRED, State.FAILED)


def advance(
    tx: Tx, facts: Facts, row: Container, happening: Happening, reason: str | None = None
) -> Container | NoCapacity | None:
    """The saved row in its new state; None when nothing changes; `NoCapacity` when there is no room."""
    state = next_state(row.state, happening)
    if state is None:
        return None
    if needs_capacity(row.state, state):
        refusal = reserve(facts.policy.capacity, held_units=held_units(tx), units=row.units)
        if refusal is not None:
            return refusal
    ports = _ports_for(tx, facts.policy, row, state)
    if ports is None:
        return NoCapacity.NO_PORTS
    moved = replace(
        row,
        state=state,
        state_since=facts.now,
        reason=reason,
        ports=ports,
        # Whatever leads here, a start is owed, and the run that follows must prove itself.
        trial=asked_for(row.trial),
        owed_since=facts.now,
        generation=row.generation + (happening is Happening.RESTART_ASKED),
        stop_asked_at=None,
        # It is not needed any more, and may hold secrets.
        env={} if state is State.STOPPED else row.env,
    )
    save_changed(tx, moved)
    if state in _WITHOUT_PORTS:
        tx.ports.drop(row.pubkey)
    if state is State.STOPPED:
        # Nobody waits for them now, but one may be paid already, or still be: the wallet's last word is asked for.
        tx.invoices.put_off_of(row.pubkey, CLOCKS_DIFFER_S + 1, facts.now + LONGEST_WAIT_S)
    text = _NOTICES.get(happening)
    if text is not None:
        tell_admin(tx, facts, moved, text)
    return moved


_NOTICES = {
    Happening.BALANCE_OUT: "is paused: its balance is used up. Top it up and it runs again; its data is kept.",
    Happening.BALANCE_TAKEN: "is paused, since its balance was withdrawn; its place was given back, its data is kept.",
    Happening.CANNOT_RUN: "cannot be run. It is charged only for what it ran.",
    Happening.GRACE_OVER: "has been paused for long: its place was given back, its data is still kept.",
    Happening.RETENTION_OVER: "was deleted with its data after its time was over.",
}


def save_changed(tx: Tx, row: Container) -> None:
    """Save a row of which the world must be told anew."""
    tx.containers.save(replace(row, revision=row.revision + 1))


def held_units(tx: Tx) -> int:
    """Units that nobody else can have now."""
    return tx.containers.count(_HOLDS_UNITS).units


def _ports_for(
    tx: Tx, policy: Policy, row: Container, state: State
) -> tuple[PublishedPort, ...] | None:
    if state not in HOLDS_UNITS or len(row.ports) >= len(row.exposed):
        return row.ports
    found = allocate(policy.ports, tx.ports.taken(), len(row.exposed))
    if found is None:
        return None
    ports = tuple(map(PublishedPort, found, row.exposed))
    tx.ports.take(row.pubkey, ports)
    return ports


def tell_admin(tx: Tx, facts: Facts, row: Container, text: str) -> None:
    """Queue a private message (NIP-17) to the container's admin."""
    balance_sat = sat_floor(tx.ledger.balance(container_account(row.pubkey)))
    why = f" Reason: {row.reason}." if row.reason else ""
    message = f"{row.name} ({npub(row.pubkey)}) {text}{why} Balance: {balance_sat} sat."
    tx.outbox.tell(row.admin, message, facts.now)


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


def covers_pause(tx: Tx, facts: Facts, row: Container) -> bool:
    """Whether the balance would pay for as long as a pause may hold the place for nothing."""
    grace_msat, _ = row.tariff.cost(row.units, facts.policy.grace_s * 1_000, 0)
    return tx.ledger.balance(container_account(row.pubkey)) >= grace_msat


def paid(tx: Tx, facts: Facts, pubkey: str, how: str = "was paid") -> None:
    """After the balance rose: run the container if that is enough, or tell its admin why not, and what made it rise."""
    row = tx.containers.find(pubkey)
    if row is None:
        return
    taken_out = row.taken_out and not covers_pause(tx, facts, row)
    row = replace(row, low_noticed=False, taken_out=taken_out, revision=row.revision + 1)
    tx.containers.save(row)
    if tx.ledger.balance(container_account(pubkey)) < needed_msat(facts.policy, row):
        return
    moved = advance(tx, facts, row, Happening.PAID)
    if isinstance(moved, NoCapacity):
        text = f"{how}, but there is no free place now: restart it later, or withdraw."
        tell_admin(tx, facts, row, text)
    elif moved is None and row.state is not State.DEPLOYED:
        text = f"{how} while {row.state.value}: the money is yours to withdraw."
        tell_admin(tx, facts, row, text)
