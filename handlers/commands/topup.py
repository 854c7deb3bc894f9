"""``topup``: an invoice for any container; anybody may pay it."""

from dataclasses import dataclass
from typing import Any

from handlers.context import Caller, Context, Facts
from handlers.domain.lifecycle import State
from handlers.domain.pricing import MSAT_PER_SAT
from handlers.errors import Code, Refusal, invalid
from handlers.invoicing import cannot_leave, invoice_result, mint, to_record
from handlers.owned import payable
from handlers.params import PUBKEY, integer, param
from handlers.patience import CLOCKS_DIFFER_S, LONGEST_WAIT_S
from handlers.ports import Minted
from handlers.records import Container, InvoiceRecord
from handlers.tables import Tx

_TOO_MANY = Refusal(
    Code.RATE_LIMITED, "this container has too many unpaid invoices; pay one or wait"
)


@dataclass(frozen=True)
class TopupParams:
    """Which container, and how much."""

    pubkey: str = param(PUBKEY)
    amount_sat: int = param(integer(1, 10_000_000, "sat"))


async def topup(ctx: Context, caller: Caller, params: TopupParams) -> dict[str, Any] | Refusal:
    """A plain invoice, recorded before it is shown."""
    description = "container top-up"
    minted = await mint_for(
        ctx, caller.pubkey, params.pubkey, params.amount_sat * MSAT_PER_SAT, description
    )
    if isinstance(minted, Refusal):
        return minted
    return {"pubkey": params.pubkey, "invoice": invoice_result(minted, description)}


async def mint_for(
    ctx: Context,
    caller: str | None,
    pubkey: str,
    amount_msat: int,
    description: str,
    description_hash: str | None = None,
    zap_request: str | None = None,
) -> Minted | Refusal:
    """An invoice for an existing container; also the LNURL endpoint's way in (``caller`` None)."""
    if not ctx.policy.min_topup_msat <= amount_msat <= ctx.policy.max_topup_msat:
        least, most = ctx.policy.min_topup_msat, ctx.policy.max_topup_msat
        return invalid(f"the amount must be {least} to {most} msat")
    row = await ctx.store.read(_may_ask, ctx.facts(), caller, pubkey)
    if isinstance(row, Refusal):
        return row
    if row.admin == ctx.key.pubkey:
        return invalid("it belongs to the instance itself, and needs no money")
    minted = await mint(ctx, pubkey, row.wallet, amount_msat, description, description_hash)
    if isinstance(minted, Refusal):
        return minted
    invoice = to_record(
        minted, pubkey, row.wallet, ctx.clock.now(), zap_request, anonymous=caller is None
    )
    # Counted again where it counts: others asked meanwhile.
    if not await ctx.store.write(_add, ctx.facts(), caller, row, invoice):
        return _TOO_MANY
    return await cannot_leave(ctx) or minted


def _may_ask(tx: Tx, facts: Facts, caller: str | None, pubkey: str) -> Container | Refusal:
    row = payable(tx, pubkey)
    if not isinstance(row, Refusal) and _has_too_many(tx, facts, caller, row):
        return _TOO_MANY
    return row


def _add(tx: Tx, facts: Facts, caller: str | None, row: Container, invoice: InvoiceRecord) -> bool:
    if _has_too_many(tx, facts, caller, row):
        return False
    if invoice.anonymous:
        _make_room(tx, facts, row)
    tx.invoices.add(invoice)
    return True


def _has_too_many(tx: Tx, facts: Facts, caller: str | None, row: Container) -> bool:
    """Anybody may ask for invoices, so there must be an end to it; the admin always has some left.

    Zaps are never refused for that: twenty callbacks would stop all zaps for as long as invoices live.
    """
    if caller is None:
        return False
    most = _most_open(facts, row) * (2 if caller == row.admin else 1)
    open_now = [i for i in tx.invoices.list_open_of(row.pubkey) if i.expires_at > facts.now]
    return len(open_now) >= most


def _most_open(facts: Facts, row: Container) -> int:
    never_paid = row.state in (State.WAITING, State.EXPIRED)
    return facts.policy.max_open_invoices_unpaid if never_paid else facts.policy.max_open_invoices


def _make_room(tx: Tx, facts: Facts, row: Container) -> None:
    """Of those that anybody asked for and nobody paid, the oldest are asked about only once they cannot be paid any
    more; paid after all, they are credited sooner when the wallet says so by itself."""
    tx.invoices.put_off_anonymous_of(
        row.pubkey,
        CLOCKS_DIFFER_S + 1,
        facts.now + LONGEST_WAIT_S,
        but_newest=_most_open(facts, row) - 1,
    )


def tell_topup(result: dict[str, Any]) -> str:
    """The invoice, and a link that wallets open."""
    invoice = result["invoice"]
    return (
        f"Pay {invoice['amount'] // MSAT_PER_SAT} sat to top it up.\n"
        f"{invoice['invoice']}\nlightning:{invoice['invoice']}"
    )
