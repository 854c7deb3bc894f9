"""``deploy`` (alias ``launch``): reserve a place for an image and ask for the first payment."""

from dataclasses import dataclass
from typing import Any

from handlers.commands.quote import price, resolve
from handlers.context import Caller, Context, Facts
from handlers.domain.capacity import NoCapacity, reserve_unpaid
from handlers.domain.image import ImageRef
from handlers.domain.lifecycle import State
from handlers.domain.ports_pool import allocate
from handlers.domain.pricing import MSAT_PER_SAT, sat_ceil
from handlers.domain.quote import Quote
from handlers.errors import Code, Refusal, invalid, restricted, unavailable
from handlers.invoicing import cannot_leave, invoice_result, mint, to_record
from handlers.params import ENV, IMAGE, NAME, QUOTE_ID, UPGRADE, integer, param
from handlers.ports import Minted
from handlers.records import Container, PublishedPort
from handlers.tables import Tx
from handlers.transitions import held_units
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
    if ctx.alarms.no_containers_because is not None:
        return unavailable(f"no new containers now: {ctx.alarms.no_containers_because}")
    if caller.public and params.env:
        return restricted("environment variables may be secrets: use the encrypted RPC")
    refusal = await ctx.store.read(_no_room, ctx.facts(), caller, params.units)
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
    row = _row(ctx.clock.now(), caller, params, quoted, key, wallet)
    refusal = await ctx.store.write(_write, ctx.facts(), caller, row, minted)
    if refusal is not None:
        return refusal
    if (unsafe := await cannot_leave(ctx)) is not None:
        return unsafe
    ctx.nudge.announce()
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


def _no_room(tx: Tx, facts: Facts, caller: Caller, units: int) -> Refusal | None:
    policy = facts.policy
    unpaid = tx.containers.count_unpaid_of(caller.pubkey, facts.now - policy.invoice_valid_s)
    problem = reserve_unpaid(
        policy.capacity,
        held_units=held_units(tx),
        waiting_units=tx.containers.count([State.WAITING]).units,
        unpaid_of_caller=unpaid.containers,
        unpaid_units_of_caller=unpaid.units,
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
    kept = await ctx.store.read(lambda tx: tx.quotes.find(quote_id))
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


def _row(
    now: int, caller: Caller, params: DeployParams, quoted: Quote, key: SecretKey, wallet: str
) -> Container:
    return Container(
        pubkey=key.pubkey,
        secret=key.reveal_secret(),
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
        upgrade=params.upgrade,
        wallet=wallet,
    )


def _write(tx: Tx, facts: Facts, caller: Caller, row: Container, minted: Minted) -> Refusal | None:
    # Checked again in the transaction that takes the units: others may have been quicker.
    refusal = _no_room(tx, facts, caller, row.units)
    if refusal is not None:
        return refusal
    host_ports = allocate(facts.policy.ports, tx.ports.taken(), len(row.exposed))
    if host_ports is None:
        return unavailable("no ports are free")
    tx.containers.add(row)
    tx.ports.take(row.pubkey, tuple(map(PublishedPort, host_ports, row.exposed)))
    tx.invoices.add(to_record(minted, row.pubkey, row.wallet, facts.now))
    return None
