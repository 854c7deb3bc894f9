"""``list``: the caller's containers."""

from dataclasses import dataclass
from typing import Any

from handlers.context import Caller, Context
from handlers.domain.ledger import container_account
from handlers.domain.lifecycle import State, wire_state
from handlers.domain.pricing import sat_floor
from handlers.tables import Tx

MAX_LISTED = 100


@dataclass(frozen=True)
class ListParams:
    """Nothing."""


async def list_containers(ctx: Context, caller: Caller, params: ListParams) -> dict[str, Any]:
    """The newest first. A stopped one is listed as long as it has a balance to withdraw."""
    return {"containers": await ctx.store.read(_rows, caller)}


def _rows(tx: Tx, caller: Caller) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = []
    for row in tx.containers.list_of(caller.pubkey, MAX_LISTED):
        balance_sat = sat_floor(tx.ledger.balance(container_account(row.pubkey)))
        if row.state is State.STOPPED and balance_sat == 0:
            continue
        listed.append(
            {
                "pubkey": row.pubkey,
                "name": row.name,
                "state": wire_state(row.state),
                "detail": row.state.value,
                "image": row.image,
                "units": row.units,
                "balance_sat": balance_sat,
            }
        )
    return listed
