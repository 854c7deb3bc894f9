"""``restart``: start a container anew, from its image and with its volumes; also out of FAILED or SHELVED."""

from dataclasses import dataclass, replace
from typing import Any

from handlers.commands.deploy import capacity_refusal
from handlers.context import Caller, Context
from handlers.domain.capacity import NoCapacity
from handlers.domain.ledger import container_account
from handlers.domain.lifecycle import Happening, next_state, wire_state
from handlers.domain.pricing import sat_ceil
from handlers.errors import Code, Refusal, invalid
from handlers.owned import owned
from handlers.params import PUBKEY, param
from handlers.ports import Tx
from handlers.transitions import advance, needed_msat


@dataclass(frozen=True)
class RestartParams:
    """Which container."""

    pubkey: str = param(PUBKEY)


async def restart(ctx: Context, caller: Caller, params: RestartParams) -> dict[str, Any] | Refusal:
    """Asks for a new generation; the engine follows."""
    answer = await ctx.store.write(lambda tx: _restart(tx, ctx, caller, params.pubkey))
    ctx.wake.reconcile()
    ctx.wake.announce()
    return answer


def _restart(tx: Tx, ctx: Context, caller: Caller, pubkey: str) -> dict[str, Any] | Refusal:
    row = owned(tx, caller, pubkey)
    if isinstance(row, Refusal):
        return row
    now = ctx.clock.now()
    if next_state(row.state, Happening.RESTART_ASKED) is None:
        return invalid(f"a container that is {row.state.value} cannot be restarted")
    # The first seconds of a run are free, so restarting without end must not be.
    if now - row.restarted_at < ctx.policy.restart_every_s:
        return Refusal(Code.RATE_LIMITED, f"one restart per {ctx.policy.restart_every_s} s")
    missing_msat = needed_msat(ctx.policy, row) - tx.balance(container_account(pubkey))
    if missing_msat > 0:
        return Refusal(
            Code.INSUFFICIENT_BALANCE, f"top it up by at least {sat_ceil(missing_msat)} sat first"
        )
    moved = advance(tx, ctx, row, Happening.RESTART_ASKED, now)
    if isinstance(moved, NoCapacity):
        return capacity_refusal(moved)
    assert moved is not None  # noqa: S101 - the table was asked above, in this transaction
    tx.save_container(replace(moved, restarted_at=now))
    return {"pubkey": pubkey, "state": wire_state(moved.state), "generation": moved.generation}


def tell_restart(result: dict[str, Any]) -> str:
    """The outcome in words."""
    return "It is being restarted."
