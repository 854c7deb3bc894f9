"""Outgoing payments after they were written down: follow them until the wallet's word is final.

Nothing here ever sends a payment again. NOT_FOUND counts as failed only after the request has
expired (the wallet must ignore it from then on) and a margin has passed for a slow relay.
"""

from dataclasses import replace

from handlers.context import Context
from handlers.domain.ledger import Entry, complete_outgoing, release_outgoing, transfer
from handlers.ports import PayResult, PayStatus, Tx
from handlers.records import Outgoing, OutgoingState

MARGIN_S = 60


async def follow_up(ctx: Context) -> None:
    """Look up every payment whose end is not known, one after another."""
    for outgoing in await ctx.store.read(lambda tx: tx.unknown_outgoing()):
        await _follow(ctx, outgoing)


async def _follow(ctx: Context, outgoing: Outgoing) -> None:
    result = await _look_up(ctx, outgoing)
    now = ctx.clock.now()
    if result.status is PayStatus.NOT_FOUND and now <= outgoing.valid_until + MARGIN_S:
        return
    await ctx.store.write(lambda tx: conclude(tx, outgoing.payment_id, result, now))


async def _look_up(ctx: Context, outgoing: Outgoing) -> PayResult:
    container = outgoing.wallet.removeprefix("wallet:")
    row = await ctx.store.read(lambda tx: tx.container(container))
    return await ctx.wallet.look_up_payment(
        outgoing.payment_hash, row.wallet_key if row is not None else None
    )


def conclude(tx: Tx, payment_id: str, result: PayResult, now: int) -> None:
    """Book the end of a payment. Idempotent: the first final word counts, a later one changes nothing."""
    outgoing = tx.outgoing(payment_id)
    if outgoing is None or outgoing.state is not OutgoingState.UNKNOWN:
        return
    match result.status:
        case PayStatus.UNKNOWN:
            return
        case PayStatus.SETTLED:
            tx.post(_completed(outgoing, result.fees_msat), now)
            tx.save_outgoing(replace(outgoing, state=OutgoingState.SETTLED))
        case PayStatus.FAILED | PayStatus.NOT_FOUND:
            if outgoing.to_wallet is None:
                tx.post(_released(outgoing), now)
            tx.save_outgoing(replace(outgoing, state=OutgoingState.FAILED))


def _completed(outgoing: Outgoing, fees_msat: int) -> Entry:
    if outgoing.to_wallet is not None:
        return transfer(
            outgoing.payment_id, outgoing.wallet, outgoing.to_wallet, outgoing.amount_msat
        )
    return complete_outgoing(
        outgoing.payment_id,
        outgoing.source,
        outgoing.wallet,
        outgoing.amount_msat,
        outgoing.fee_reserve_msat,
        fees_msat,
    )


def _released(outgoing: Outgoing) -> Entry:
    return release_outgoing(
        outgoing.payment_id, outgoing.source, outgoing.amount_msat, outgoing.fee_reserve_msat
    )
