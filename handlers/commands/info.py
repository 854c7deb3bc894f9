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
from handlers.records import Container


@dataclass(frozen=True)
class InfoParams:
    """Which container."""

    pubkey: str = param(PUBKEY)


async def info(ctx: Context, caller: Caller, params: InfoParams) -> dict[str, Any] | Refusal:
    """Names of environment variables are told, their values never."""
    row = await ctx.store.read(owned, caller, params.pubkey)
    if isinstance(row, Refusal):
        return row
    account = container_account(row.pubkey)
    told = _info(ctx, row, await ctx.store.read(lambda tx: tx.ledger.balance(account)))
    return told | {"progress": ctx.engine.progress(row.pubkey)}


def _info(ctx: Context, row: Container, balance_msat: int) -> dict[str, Any]:
    limits = limits_for(row.units, ctx.policy.unit_size)
    return {
        "pubkey": row.pubkey,
        "name": row.name,
        "state": wire_state(row.state),
        "detail": row.state.value,
        "reason": row.reason,
        "since": row.state_since,
        "image": row.image,
        "asked_for": row.asked_for,
        "units": row.units,
        "balance_msat": balance_msat,
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
        f"{port.container_port.partition('/')[2] or 'tcp'}://{ctx.presence.app_host}:{port.host_port}"
        for port in row.ports
    ]
