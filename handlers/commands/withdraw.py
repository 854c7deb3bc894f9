"""``withdraw``: pay a container's balance out to a Lightning invoice.

The money is taken out of the balance, and the payment written down, before the wallet is asked. From
then on the payment is UNKNOWN until the wallet's word is final: it is never sent a second time.
"""

import secrets
from dataclasses import dataclass, replace
from typing import Any

from handlers.context import Caller, Context, Facts
from handlers.domain.ledger import container_account, reserve_outgoing
from handlers.domain.lifecycle import Happening, State
from handlers.domain.pricing import MSAT_PER_SAT, sat_floor
from handlers.domain.trial import Progress
from handlers.duties.charge import charge_now
from handlers.duties.outgoing import book, send
from handlers.errors import Code, Refusal, invalid, unavailable
from handlers.fees import fee_reserve, most_withdrawable_msat
from handlers.owned import owned
from handlers.params import BOLT11, PUBKEY, integer, param
from handlers.ports import PayStatus
from handlers.records import Container, Outgoing
from handlers.tables import Tx
from handlers.transitions import advance, covers_pause
from nips.bolt11 import Invoice, decode_invoice_untrusted
from nips.errors import BadInvoice

MAX_INVOICE_LIFE_S = 24 * 3600


@dataclass(frozen=True)
class WithdrawParams:
    """``amount_sat`` is needed only for an invoice that names no amount."""

    pubkey: str = param(PUBKEY)
    invoice: str = param(BOLT11)
    amount_sat: int | None = param(integer(1, 100_000_000, "sat"), None)


async def withdraw(
    ctx: Context, caller: Caller, params: WithdrawParams
) -> dict[str, Any] | Refusal:
    """Reserve, pay, conclude."""
    try:
        invoice = decode_invoice_untrusted(params.invoice)
    except BadInvoice as error:
        return invalid(str(error))
    facts = ctx.facts(params.pubkey)
    amount_msat = _amount(invoice, params.amount_sat, facts.now)
    if isinstance(amount_msat, Refusal):
        return amount_msat
    reserved = await ctx.store.write(_reserve, facts, caller, params.pubkey, invoice, amount_msat)
    ctx.dues.hurry(params.pubkey)
    if isinstance(reserved, Refusal):
        return reserved
    row, outgoing = reserved
    result = await send(ctx, outgoing, row.wallet_key)
    await ctx.store.write(book, ctx.facts(), outgoing.payment_id, result)
    ctx.nudge.announce()
    match result.status:
        case PayStatus.SETTLED:
            # It is paid whatever comes of this; but whoever hears so is not to see it undone with a wallet of ours.
            await ctx.durability.reached()
            return _result(outgoing, "settled", result.preimage)
        case PayStatus.FAILED:
            return unavailable(
                f"the payment failed and nothing was taken: {result.reason or 'no route'}"
            )
        case PayStatus.PENDING | PayStatus.ABSENT | PayStatus.UNKNOWN:
            return _result(outgoing, "unknown", None)


def _amount(invoice: Invoice, amount_sat: int | None, now: int) -> int | Refusal:
    if invoice.expires_at <= now:
        return invalid("that invoice has expired")
    if invoice.expires_at > now + MAX_INVOICE_LIFE_S:
        return invalid("that invoice lives longer than a day: make one that expires sooner")
    if invoice.amount_msat is None:
        if amount_sat is None:
            return invalid("the invoice names no amount: give amount_sat")
        return amount_sat * MSAT_PER_SAT
    if amount_sat is not None and amount_sat * MSAT_PER_SAT != invoice.amount_msat:
        return invalid("amount_sat differs from the invoice's amount")
    return invoice.amount_msat


def _reserve(
    tx: Tx, facts: Facts, caller: Caller, pubkey: str, invoice: Invoice, amount_msat: int
) -> tuple[Container, Outgoing] | Refusal:
    row = owned(tx, caller, pubkey)
    if isinstance(row, Refusal):
        return row
    # One try per invoice, even after a failure: the wallet's book knows payments by hash only, and an
    # old "failed" read as the end of a new try would pay the money out twice.
    if tx.outgoing.find_by_hash(invoice.payment_hash) is not None:
        return invalid("that invoice was tried already: make a new one")
    if tx.invoices.find(invoice.payment_hash) is not None:
        return invalid("that is an invoice of this instance: it cannot pay itself")
    if _may_run_uncounted(facts, row):
        return unavailable("the container's running time is not known this moment; retry")
    # What ran until now is not the tenant's any more.
    charge_now(tx, facts, row)
    outgoing = _written_down(tx, facts, row, invoice, amount_msat)
    if isinstance(outgoing, Refusal):
        return outgoing
    # Charging may have paused it: the row is read anew.
    row = tx.containers.find(pubkey) or row
    _give_place_back(tx, facts, row)
    return row, outgoing


def _give_place_back(tx: Tx, facts: Facts, row: Container) -> None:
    """Whoever takes his money out does not keep a place that others would pay for: not when a pause begins, and not in
    one."""
    row = replace(row, taken_out=not covers_pause(tx, facts, row))
    tx.containers.save(row)
    if row.taken_out and row.state is State.PAUSED:
        advance(tx, facts, row, Happening.BALANCE_TAKEN)


def _may_run_uncounted(facts: Facts, row: Container) -> bool:
    proven = row.state is State.DEPLOYED and row.trial.progress is Progress.PROVEN
    return proven and row.pubkey not in facts.runs


def _written_down(
    tx: Tx, facts: Facts, row: Container, invoice: Invoice, amount_msat: int
) -> Outgoing | Refusal:
    """The payment, with its money and what its route may cost taken out of the balance."""
    source, reserve = container_account(row.pubkey), fee_reserve(tx, facts)
    fee_reserve_msat, balance_msat = reserve.of(amount_msat), tx.ledger.balance(source)
    if balance_msat < amount_msat + fee_reserve_msat:
        most = sat_floor(most_withdrawable_msat(reserve, balance_msat))
        return Refusal(
            Code.INSUFFICIENT_BALANCE,
            f"at most {most} sat can be withdrawn: what the route may cost is held back, and what it does not "
            "cost comes back",
        )
    outgoing = Outgoing(
        payment_id=secrets.token_hex(16),
        payment_hash=invoice.payment_hash,
        bolt11=invoice.bolt11,
        source=source,
        wallet=row.wallet,
        amount_msat=amount_msat,
        fee_reserve_msat=fee_reserve_msat,
        created_at=facts.now,
        # A wallet that takes the request up late can pay until the invoice expires, and not after.
        valid_until=max(facts.now + facts.policy.pay_valid_s, invoice.expires_at),
    )
    tx.outgoing.save(outgoing)
    entry = reserve_outgoing(outgoing.payment_id, source, amount_msat, fee_reserve_msat)
    tx.ledger.post(entry, facts.now)
    return outgoing


def _result(outgoing: Outgoing, state: str, preimage: str | None) -> dict[str, Any]:
    return {
        "payment_id": outgoing.payment_id,
        "payment_hash": outgoing.payment_hash,
        "amount_sat": sat_floor(outgoing.amount_msat),
        "state": state,
        "preimage": preimage,
    }
