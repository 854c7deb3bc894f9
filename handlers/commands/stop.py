"""``stop``: delete a container and its volumes. What is left of the balance stays withdrawable."""

from dataclasses import dataclass, replace
from typing import Any

from handlers.context import Caller, Context, Facts
from handlers.domain.ledger import container_account
from handlers.domain.lifecycle import Happening, State
from handlers.domain.pricing import sat_floor
from handlers.duties.charge import charge_now
from handlers.errors import Refusal
from handlers.owned import owned
from handlers.params import FLAG, PUBKEY, param
from handlers.records import Container
from handlers.tables import Tx
from handlers.transitions import advance


@dataclass(frozen=True)
class StopParams:
    """``force`` skips the second call that otherwise confirms."""

    pubkey: str = param(PUBKEY)
    force: bool = param(FLAG, False)


async def stop(ctx: Context, caller: Caller, params: StopParams) -> dict[str, Any] | Refusal:
    """The first call asks, the second one (or ``force``) deletes."""
    answer = await ctx.store.write(_stop, ctx.facts(params.pubkey), caller, params)
    # Else a restore would run it again, for money whose owner was told that it is his.
    await ctx.durability.reached()
    ctx.nudge.reconcile()
    ctx.nudge.announce()
    return answer


def _stop(tx: Tx, facts: Facts, caller: Caller, params: StopParams) -> dict[str, Any] | Refusal:
    row = owned(tx, caller, params.pubkey)
    if isinstance(row, Refusal):
        return row
    if row.state is State.STOPPED:
        return _answer(tx, row, "stopped", confirm=False)
    if not params.force and not _is_confirmed(facts, row):
        tx.containers.save(replace(row, stop_asked_at=facts.now))
        return _answer(tx, row, row.state.value, confirm=True)
    charge_now(tx, facts, row)
    # Charging may have paused it: the row is read anew.
    advance(tx, facts, tx.containers.find(row.pubkey) or row, Happening.STOP_CONFIRMED)
    return _answer(tx, row, "stopped", confirm=False)


def _is_confirmed(facts: Facts, row: Container) -> bool:
    asked = row.stop_asked_at
    return asked is not None and 0 <= facts.now - asked <= facts.policy.confirm_stop_s


def _answer(tx: Tx, row: Container, state: str, *, confirm: bool) -> dict[str, Any]:
    balance_sat = sat_floor(tx.ledger.balance(container_account(row.pubkey)))
    return {"pubkey": row.pubkey, "state": state, "balance_sat": balance_sat, "confirm": confirm}


def tell_stop(result: dict[str, Any]) -> str:
    """The outcome in words."""
    if result["confirm"]:
        return "This deletes the container and its volumes. Say stop once more to confirm."
    return f"Deleted. {result['balance_sat']} sat are yours to withdraw."
