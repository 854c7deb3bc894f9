"""``topup``: an invoice for any container; anybody may pay it."""

from dataclasses import dataclass
from typing import Any

from handlers.context import Caller, Context
from handlers.domain.pricing import MSAT_PER_SAT
from handlers.errors import Code, Refusal, invalid
from handlers.invoicing import invoice_result, mint, record, too_many_open
from handlers.owned import payable
from handlers.params import PUBKEY, integer, param
from handlers.ports import Minted, Tx
from handlers.records import Container

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
    """An invoice for an existing container; also the LNURL endpoint's way in."""
    if not ctx.policy.min_topup_msat <= amount_msat <= ctx.policy.max_topup_msat:
        least, most = ctx.policy.min_topup_msat, ctx.policy.max_topup_msat
        return invalid(f"the amount must be {least} to {most} msat")
    now = ctx.clock.now()
    row = await ctx.store.read(lambda tx: _may_ask(tx, ctx, caller, pubkey, now))
    if isinstance(row, Refusal):
        return row
    minted = await mint(ctx, pubkey, row.wallet, amount_msat, description, description_hash)
    if isinstance(minted, Refusal):
        return minted

    def write(tx: Tx) -> bool:
        # Counted again where it counts: others asked meanwhile.
        if too_many_open(tx, ctx, row, caller, now):
            return False
        record(tx, minted, pubkey, row.wallet, now, zap_request)
        return True

    return minted if await ctx.store.write(write) else _TOO_MANY


def _may_ask(
    tx: Tx, ctx: Context, caller: str | None, pubkey: str, now: int
) -> Container | Refusal:
    row = payable(tx, pubkey)
    if not isinstance(row, Refusal) and too_many_open(tx, ctx, row, caller, now):
        return _TOO_MANY
    return row


def tell_topup(result: dict[str, Any]) -> str:
    """The invoice, and a link that wallets open."""
    invoice = result["invoice"]
    return (
        f"Pay {invoice['amount'] // MSAT_PER_SAT} sat to top it up.\n"
        f"{invoice['invoice']}\nlightning:{invoice['invoice']}"
    )
