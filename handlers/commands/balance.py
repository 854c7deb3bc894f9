"""``balance``: what is left, how long it lasts, what could be withdrawn. Balances are public."""

from dataclasses import dataclass
from typing import Any

from handlers.context import Caller, Context, Facts
from handlers.domain.ledger import container_account
from handlers.domain.lifecycle import wire_state
from handlers.domain.pricing import sat_floor
from handlers.errors import Refusal, not_found
from handlers.fees import fee_reserve, most_withdrawable_msat
from handlers.params import PUBKEY, param
from handlers.tables import Tx


@dataclass(frozen=True)
class BalanceParams:
    """Which container."""

    pubkey: str = param(PUBKEY)


async def balance(ctx: Context, caller: Caller, params: BalanceParams) -> dict[str, Any] | Refusal:
    """The balance as it is written; what ran since the last charge is not off it yet."""
    return await ctx.store.read(_balance, ctx.facts(), params.pubkey)


def _balance(tx: Tx, facts: Facts, pubkey: str) -> dict[str, Any] | Refusal:
    row = tx.containers.find(pubkey)
    if row is None:
        return not_found("there is no such container here")
    msat = tx.ledger.balance(container_account(pubkey))
    reserve = fee_reserve(tx, facts)
    return {
        "pubkey": pubkey,
        "state": wire_state(row.state),
        "detail": row.state.value,
        "balance_msat": msat,
        "balance_sat": sat_floor(msat),
        "lasts_s": row.tariff.affordable_ms(row.units, msat, 0) // 1_000,
        "withdrawable_sat": sat_floor(most_withdrawable_msat(reserve, msat)),
    }


def tell_balance(result: dict[str, Any]) -> str:
    """The balance in words."""
    return f"{result['state']}: {result['balance_sat']} sat, enough for {result['lasts_s']} s."
