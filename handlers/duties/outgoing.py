"""Outgoing payments after they were written down: follow them until the wallet's word is final.

Nothing here ever sends a payment again. NOT_FOUND counts as failed only after the request has
expired (the wallet must ignore it from then on) and a margin has passed for a slow relay.
"""

from dataclasses import replace

from handlers.context import Context
from handlers.domain.ledger import Entry, complete_outgoing, release_outgoing, transfer
from handlers.duties.settle import patience
from handlers.ports import PayResult, PayStatus, Tx
from handlers.records import Outgoing, OutgoingState
from handlers.transitions import paid

MARGIN_S = 60
BATCH = 50


async def due_payments(ctx: Context) -> list[str]:
    """Payments to follow now. Each is put off at once, so that one that fails cannot block others."""
    return await ctx.store.write(lambda tx: _claim(tx, ctx.clock.now()))


def _claim(tx: Tx, now: int) -> list[str]:
    due = tx.outgoing_to_look_at(now, BATCH)
    for outgoing in due:
        tx.save_outgoing(replace(outgoing, next_look_at=now + patience(now - outgoing.created_at)))
    return [outgoing.payment_id for outgoing in due]


async def follow(ctx: Context, payment_id: str) -> None:
    """Ask the wallet what became of a payment, and book a final word."""
    outgoing = await ctx.store.read(lambda tx: tx.outgoing(payment_id))
    if outgoing is None:
        return
    result = await _look_up(ctx, outgoing)
    now = ctx.clock.now()
    if result.status is PayStatus.NOT_FOUND and now <= outgoing.valid_until + MARGIN_S:
        return
    await ctx.store.write(lambda tx: conclude(tx, ctx, payment_id, result, now))


async def _look_up(ctx: Context, outgoing: Outgoing) -> PayResult:
    container = outgoing.wallet.removeprefix("wallet:")
    row = await ctx.store.read(lambda tx: tx.container(container))
    return await ctx.wallet.look_up_payment(
        outgoing.payment_hash, row.wallet_key if row is not None else None
    )


def conclude(tx: Tx, ctx: Context, payment_id: str, result: PayResult, now: int) -> None:
    """Book the end of a payment. Idempotent: the first final word counts, a later one changes nothing."""
    outgoing = tx.outgoing(payment_id)
    if outgoing is None or outgoing.state is not OutgoingState.UNKNOWN:
        return
    match result.status:
        case PayStatus.UNKNOWN:
            return
        case PayStatus.SETTLED:
            tx.post(_completed(tx, outgoing, result.fees_msat), now)
            tx.save_outgoing(replace(outgoing, state=OutgoingState.SETTLED))
        case PayStatus.FAILED | PayStatus.NOT_FOUND:
            if outgoing.to_wallet is None:
                tx.post(_released(outgoing), now)
            tx.save_outgoing(replace(outgoing, state=OutgoingState.FAILED))
            # The money is back: what was paused for lack of it may run again.
            paid(tx, ctx, outgoing.source.removeprefix("container:"), now)


def _completed(tx: Tx, outgoing: Outgoing, fees_msat: int) -> Entry:
    if outgoing.to_wallet is not None:
        return transfer(
            outgoing.payment_id,
            outgoing.wallet,
            outgoing.to_wallet,
            outgoing.amount_msat,
            fees_msat,
        )
    return complete_outgoing(
        outgoing.payment_id,
        outgoing.source,
        outgoing.wallet,
        outgoing.amount_msat,
        outgoing.fee_reserve_msat,
        fees_msat,
        tx.balance(outgoing.source),
    )


def _released(outgoing: Outgoing) -> Entry:
    return release_outgoing(
        outgoing.payment_id, outgoing.source, outgoing.amount_msat, outgoing.fee_reserve_msat
    )
