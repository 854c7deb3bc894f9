"""``restart``: start a container anew, from its image and with its volumes; also out of FAILED or SHELVED."""

from dataclasses import dataclass, replace
from typing import Any

from handlers.commands.deploy import capacity_refusal
from handlers.context import Caller, Context, Facts
from handlers.domain.capacity import NoCapacity
from handlers.domain.ledger import container_account
from handlers.domain.lifecycle import Happening, next_state, wire_state
from handlers.domain.pricing import sat_ceil
from handlers.errors import Code, Refusal, invalid
from handlers.owned import owned
from handlers.params import PUBKEY, param
from handlers.records import Container
from handlers.tables import Tx
from handlers.transitions import advance, needed_msat, save_changed


@dataclass(frozen=True)
class RestartParams:
    """Which container."""

    pubkey: str = param(PUBKEY)


async def restart(ctx: Context, caller: Caller, params: RestartParams) -> dict[str, Any] | Refusal:
    """Asks for a new generation; the engine follows."""
    answer = await ctx.store.write(_restart, ctx.facts(), caller, params.pubkey)
    ctx.nudge.reconcile()
    ctx.nudge.announce()
    return answer


def _restart(tx: Tx, facts: Facts, caller: Caller, pubkey: str) -> dict[str, Any] | Refusal:
    row = owned(tx, caller, pubkey)
    if isinstance(row, Refusal):
        return row
    refusal = _not_now(tx, facts, row)
    if refusal is not None:
        return refusal
    moved = advance(tx, facts, row, Happening.RESTART_ASKED)
    if isinstance(moved, NoCapacity):
        return capacity_refusal(moved)
    assert moved is not None  # noqa: S101 - the table was asked above, in this transaction
    save_changed(tx, replace(moved, restarted_at=facts.now))
    return {"pubkey": pubkey, "state": wire_state(moved.state), "generation": moved.generation}


def _not_now(tx: Tx, facts: Facts, row: Container) -> Refusal | None:
    if next_state(row.state, Happening.RESTART_ASKED) is None:
        return invalid(f"a container that is {row.state.value} cannot be restarted")
    every_s = facts.policy.restart_every_s
    if 0 <= facts.now - row.restarted_at < every_s:
        return Refusal(Code.RATE_LIMITED, f"one restart per {every_s} s")
    missing_msat = needed_msat(facts.policy, row) - tx.ledger.balance(
        container_account(row.pubkey)
    )
    if missing_msat > 0:
        text = f"top it up by at least {sat_ceil(missing_msat)} sat first"
        return Refusal(Code.INSUFFICIENT_BALANCE, text)
    return None


def tell_restart(result: dict[str, Any]) -> str:
    """The outcome in words."""
    return "It is being restarted."
