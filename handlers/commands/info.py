"""``info``: all about one container, for its admin."""

from dataclasses import dataclass
from typing import Any

from handlers.context import Caller, Context
from handlers.domain.ledger import container_account
from handlers.domain.lifecycle import wire_state
from handlers.domain.limits import limits_for
from handlers.errors import Refusal
from handlers.owned import owned
from handlers.params import PUBKEY, param
from handlers.ports import Tx
from handlers.records import Container


@dataclass(frozen=True)
class InfoParams:
    """Which container."""

    pubkey: str = param(PUBKEY)


async def info(ctx: Context, caller: Caller, params: InfoParams) -> dict[str, Any] | Refusal:
    """Names of environment variables are told, their values never."""
    told = await ctx.store.read(lambda tx: _info(tx, ctx, caller, params.pubkey))
    if isinstance(told, Refusal):
        return told
    return told | {"progress": ctx.engine.progress(params.pubkey)}


def _info(tx: Tx, ctx: Context, caller: Caller, pubkey: str) -> dict[str, Any] | Refusal:
    row = owned(tx, caller, pubkey)
    if isinstance(row, Refusal):
        return row
    limits = limits_for(row.units, ctx.policy.unit_size)
    return {
        "pubkey": pubkey,
        "name": row.name,
        "state": wire_state(row.state),
        "detail": row.state.value,
        "reason": row.reason,
        "since": row.state_since,
        "image": row.image,
        "asked_for": row.asked_for,
        "units": row.units,
        "balance_msat": tx.balance(container_account(pubkey)),
        "price_msat_per_unit": row.tariff.price_msat,
        "interval_s": row.tariff.interval_s,
        "generation": row.generation,
        "env": sorted(row.env),
        "volumes": list(row.volumes),
        "endpoints": endpoints(ctx, row),
        "memory_bytes": limits.memory_bytes,
        "cpu_quota_us": limits.cpu_quota_us,
    }


def endpoints(ctx: Context, row: Container) -> list[str]:
    """Where the published ports open: ``tcp://host:port``."""
    return [
        f"{port.container_port.partition('/')[2] or 'tcp'}://{ctx.places.app_host}:{port.host_port}"
        for port in row.ports
    ]
