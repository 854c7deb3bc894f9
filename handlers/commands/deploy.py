"""``deploy`` (alias ``launch``): reserve a place for an image and ask for the first payment."""

from dataclasses import dataclass
from typing import Any

from handlers.commands.quote import price, resolve
from handlers.context import Caller, Context
from handlers.domain.capacity import NoCapacity, reserve_unpaid
from handlers.domain.image import ImageRef
from handlers.domain.lifecycle import State
from handlers.domain.ports_pool import allocate
from handlers.domain.pricing import MSAT_PER_SAT, sat_ceil
from handlers.domain.quote import Quote
from handlers.errors import Code, Refusal, invalid, restricted, unavailable
from handlers.invoicing import invoice_result, mint, record
from handlers.params import ENV, IMAGE, NAME, QUOTE_ID, UPGRADE, integer, param
from handlers.ports import Minted, Tx
from handlers.records import Container, PublishedPort
from nips.keys import SecretKey
from nips.nip19 import npub


@dataclass(frozen=True)
class DeployParams:
    """``launch``'s parameters as existing clients send them, and two more."""

    docker: ImageRef = param(IMAGE)
    units: int = param(integer(1, 50))
    name: str | None = param(NAME, None)
    env: dict[str, str] | None = param(ENV, None)
    upgrade: str = param(UPGRADE, "")
    amount_sat: int | None = param(integer(1, 10_000_000, "sat"), None)
    quote_id: str | None = param(QUOTE_ID, None)


async def deploy(ctx: Context, caller: Caller, params: DeployParams) -> dict[str, Any] | Refusal:
    """Write the container as WAITING with its invoice, in one transaction; run nothing yet.

    The wallet is asked before anything is written: an invoice that no row knows was never shown to
    anybody, so a crash in between loses nothing.
    """
    if ctx.admission.closed_because is not None:
        return unavailable(f"no new containers now: {ctx.admission.closed_because}")
    if caller.public and params.env:
        return restricted("environment variables may be secrets: use the encrypted RPC")
    refusal = await ctx.store.read(lambda tx: _no_room(tx, ctx, caller, params.units))
    if refusal is not None:
        return refusal
    quoted = await _quote_for(ctx, caller, params)
    if isinstance(quoted, Refusal):
        return quoted
    amount_msat = _first_amount(quoted, params.amount_sat)
    if isinstance(amount_msat, Refusal):
        return amount_msat
    key = SecretKey.generate()
    description = f"{params.units} units for {params.docker.repository}"
    wallet = ctx.wallet.wallet_for(key.pubkey)
    minted = await mint(ctx, key.pubkey, wallet, amount_msat, description)
    if isinstance(minted, Refusal):
        return minted
    refusal = await ctx.store.write(
        lambda tx: _write(tx, ctx, caller, params, quoted, key, wallet, minted)
    )
    if refusal is not None:
        return refusal
    ctx.wake.announce()
    return {
        "pubkey": key.pubkey,
        "npub": npub(key.pubkey),
        "invoice": invoice_result(minted, description),
    }


def tell_deploy(result: dict[str, Any]) -> str:
    """The invoice, and a link that wallets open."""
    invoice = result["invoice"]
    return (
        f"Pay {invoice['amount'] // MSAT_PER_SAT} sat and nostr:{result['npub']} starts.\n"
        f"{invoice['invoice']}\nlightning:{invoice['invoice']}"
    )


def _no_room(tx: Tx, ctx: Context, caller: Caller, units: int) -> Refusal | None:
    problem = reserve_unpaid(
        ctx.policy.capacity,
        held_units=tx.held_units(),
        waiting_units=tx.waiting_units(),
        waiting_of_caller=tx.waiting_of(caller.pubkey),
        units=units,
    )
    return capacity_refusal(problem) if problem is not None else None


def capacity_refusal(problem: NoCapacity) -> Refusal:
    """The refusal that goes with a lack of capacity."""
    word, _, text = problem.value.partition(": ")
    return Refusal(Code(word), text)


async def _quote_for(ctx: Context, caller: Caller, params: DeployParams) -> Quote | Refusal:
    if params.quote_id is None:
        found = await resolve(ctx, caller, params.docker, params.units)
        return found if isinstance(found, Refusal) else price(ctx, found, params.units)
    quote_id = params.quote_id
    kept = await ctx.store.read(lambda tx: tx.quote(quote_id))
    if kept is None or not kept.is_valid_for(str(params.docker), params.units, ctx.clock.now()):
        return invalid("that quote does not exist, has expired, or is for another image or size")
    return kept


def _first_amount(quoted: Quote, amount_sat: int | None) -> int | Refusal:
    least_msat = quoted.tariff.interval_msat(quoted.units)
    if amount_sat is None:
        return least_msat
    if amount_sat * MSAT_PER_SAT < least_msat:
        return invalid(
            f"amount_sat must be at least {sat_ceil(least_msat)}, the price of one interval"
        )
    return amount_sat * MSAT_PER_SAT


def _write(
    tx: Tx,
    ctx: Context,
    caller: Caller,
    params: DeployParams,
    quoted: Quote,
    key: SecretKey,
    wallet: str,
    minted: Minted,
) -> Refusal | None:
    # Checked again in the transaction that takes the units: others may have been quicker.
    refusal = _no_room(tx, ctx, caller, params.units)
    if refusal is not None:
        return refusal
    host_ports = allocate(ctx.policy.ports, tx.taken_ports(), len(quoted.ports))
    if host_ports is None:
        return unavailable("no ports are free")
    now = ctx.clock.now()
    tx.add_container(
        Container(
            key=key,
            admin=caller.pubkey,
            name=params.name or params.docker.repository.rpartition("/")[2][:31],
            asked_for=str(params.docker),
            image=quoted.image,
            units=params.units,
            tariff=quoted.tariff,
            state=State.WAITING,
            state_since=now,
            created_at=now,
            env=params.env or {},
            volumes=quoted.volumes,
            exposed=quoted.ports,
            ports=tuple(map(PublishedPort, host_ports, quoted.ports)),
            upgrade=params.upgrade,
            wallet=wallet,
        )
    )
    record(tx, minted, key.pubkey, wallet, now)
    return None
