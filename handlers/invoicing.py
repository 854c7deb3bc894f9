"""Asks the wallet for an invoice that feeds a container's balance, and shows it as NIP-47 does."""

from typing import Any

from handlers.context import Context
from handlers.errors import Refusal, unavailable
from handlers.ports import InvoiceWanted, Minted, WalletProblem
from handlers.records import InvoiceRecord


async def mint(
    ctx: Context,
    container: str,
    wallet: str,
    amount_msat: int,
    description: str,
    description_hash: str | None = None,
) -> Minted | Refusal:
    """An invoice that nobody has been told of yet; it counts only once it is recorded."""
    if ctx.alarms.no_invoices_because is not None:
        return unavailable(f"no money is taken now: {ctx.alarms.no_invoices_because}")
    wanted = InvoiceWanted(
        container, wallet, amount_msat, description, description_hash, ctx.policy.invoice_valid_s
    )
    minted = await ctx.wallet.make_invoice(wanted)
    return unavailable(minted.value) if isinstance(minted, WalletProblem) else minted


async def cannot_leave(ctx: Context) -> Refusal | None:
    """Asked after an invoice was recorded and before anybody sees it: what is paid must be found after any restore."""
    if await ctx.durability.reached():
        return None
    return unavailable(
        "what you would pay for cannot be made safe now; nothing is taken, retry later"
    )


def to_record(
    minted: Minted,
    container: str,
    wallet: str,
    now: int,
    zap_request: str | None = None,
    *,
    anonymous: bool = False,
) -> InvoiceRecord:
    """What to remember, so that its payment is looked for and credited."""
    return InvoiceRecord(
        payment_hash=minted.payment_hash,
        container=container,
        bolt11=minted.bolt11,
        amount_msat=minted.amount_msat,
        created_at=minted.created_at,
        expires_at=minted.expires_at,
        wallet=wallet,
        next_look_at=now,
        zap_request=zap_request,
        anonymous=anonymous,
    )


def invoice_result(minted: Minted, description: str) -> dict[str, Any]:
    """The shape of NIP-47's ``make_invoice`` result."""
    return {
        "type": "incoming",
        "invoice": minted.bolt11,
        "description": description,
        "payment_hash": minted.payment_hash,
        "amount": minted.amount_msat,
        "created_at": minted.created_at,
        "expires_at": minted.expires_at,
    }
