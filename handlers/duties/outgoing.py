"""Outgoing payments after they were written down: follow them until the wallet's word is final.

Nothing here ever sends a payment again. What the wallet neither confirms nor denies stays UNKNOWN, and its money
held, until `handlers.domain.evidence` says that it can never be paid any more, or the operator resolves it.
"""

from dataclasses import replace

from handlers.context import Context
from handlers.domain.evidence import Book, Witnesses, has_failed, is_over
from handlers.domain.ledger import (
    Entry,
    complete_outgoing,
    release_outgoing,
    settled_after_all,
    transfer,
)
from handlers.duties.settle import patience
from handlers.ports import PayResult, PayStatus, Tx
from handlers.records import Outgoing, OutgoingState
from handlers.transitions import paid, tell_admin

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
    if outgoing is None or outgoing.state is not OutgoingState.UNKNOWN:
        return
    result = await _look_up(ctx, outgoing)
    if result.status is PayStatus.ABSENT and is_over(outgoing.valid_until, ctx.clock.now()):
        result = await _judge_absence(ctx, outgoing, result)
    await ctx.store.write(lambda tx: conclude(tx, ctx, payment_id, result, ctx.clock.now()))


async def heard(ctx: Context, payment_hash: str, said: PayResult) -> None:
    """The wallet spoke of a payment by itself: believe a final word, for all else ask."""
    for outgoing in await ctx.store.read(lambda tx: tx.outgoing_with_hash(payment_hash)):
        if said.status in (PayStatus.SETTLED, PayStatus.FAILED):
            await ctx.store.write(
                lambda tx, o=outgoing: conclude(tx, ctx, o.payment_id, said, ctx.clock.now())  # type: ignore[misc]
            )
        else:
            await follow(ctx, outgoing.payment_id)


async def heard_of_wallet(ctx: Context, container: str) -> None:
    """Something happened in a container's own wallet: maybe what we wait to know."""
    for outgoing in await ctx.store.read(lambda tx: tx.unknown_outgoing()):
        if outgoing.wallet == f"wallet:{container}":
            await follow(ctx, outgoing.payment_id)


async def _look_up(ctx: Context, outgoing: Outgoing) -> PayResult:
    container = outgoing.wallet.removeprefix("wallet:")
    row = await ctx.store.read(lambda tx: tx.container(container))
    return await ctx.wallet.look_up_payment(
        outgoing.payment_hash, row.wallet_key if row is not None else None, outgoing.created_at
    )


async def _judge_absence(ctx: Context, outgoing: Outgoing, result: PayResult) -> PayResult:
    """A payment that is missing has failed if the same books show another one now."""
    witnesses = Witnesses(
        settled=await _books_showing(ctx, outgoing, unsettled=False),
        unsettled=await _books_showing(ctx, outgoing, unsettled=True),
    )
    failed = has_failed(
        result.books, witnesses, outgoing.valid_until, ctx.clock.now(), ctx.policy.htlc_s
    )
    if not failed:
        return result
    return PayResult(PayStatus.FAILED, reason="the wallet shows other payments, but not this one")


async def _books_showing(ctx: Context, outgoing: Outgoing, *, unsettled: bool) -> frozenset[Book]:
    payment_id = outgoing.payment_id
    witness = await ctx.store.read(lambda tx: tx.witness(payment_id, unsettled=unsettled))
    if witness is None:
        return frozenset()
    shown = await _look_up(ctx, witness)
    return shown.books if shown.status is not PayStatus.ABSENT else frozenset()


def conclude(tx: Tx, ctx: Context, payment_id: str, result: PayResult, now: int) -> None:
    """Book what is known of a payment. Idempotent: the first final word counts, a later one changes nothing,
    except that what was given back as failed and is paid after all is booked as such."""
    outgoing = tx.outgoing(payment_id)
    if outgoing is None or outgoing.state is OutgoingState.SETTLED:
        return
    outgoing = _seen(tx, outgoing, result)
    match outgoing.state, result.status:
        case OutgoingState.UNKNOWN, PayStatus.SETTLED:
            tx.post(_completed(tx, outgoing, result.fees_msat), now)
            _save_settled(tx, outgoing, result)
        case OutgoingState.FAILED, PayStatus.SETTLED:
            tx.post(_after_all(tx, outgoing, result.fees_msat), now)
            _save_settled(tx, outgoing, result)
        case OutgoingState.UNKNOWN, PayStatus.FAILED:
            if outgoing.to_wallet is None:
                tx.post(_released(outgoing), now)
            tx.save_outgoing(replace(outgoing, state=OutgoingState.FAILED))
            # The money is back: what was paused for lack of it may run again.
            paid(tx, ctx, outgoing.source.removeprefix("container:"), now)
        case OutgoingState.UNKNOWN, _:
            _tell_if_over(tx, ctx, outgoing, now)
        case _:
            pass


def _seen(tx: Tx, outgoing: Outgoing, result: PayResult) -> Outgoing:
    """Remember that a book shows payments that are not settled: it may be a witness for others."""
    if outgoing.seen_unsettled or not result.is_seen_unsettled:
        return outgoing
    outgoing = replace(outgoing, seen_unsettled=True)
    tx.save_outgoing(outgoing)
    return outgoing


def _save_settled(tx: Tx, outgoing: Outgoing, result: PayResult) -> None:
    tx.save_outgoing(replace(outgoing, state=OutgoingState.SETTLED, fees_msat=result.fees_msat))


def _tell_if_over(tx: Tx, ctx: Context, outgoing: Outgoing, now: int) -> None:
    """Nobody who waits for his money is left without a word."""
    if outgoing.told or not is_over(outgoing.valid_until, now):
        return
    tx.save_outgoing(replace(outgoing, told=True))
    row = tx.container(outgoing.source.removeprefix("container:"))
    if row is not None:
        text = (
            f"has a withdrawal of {outgoing.amount_msat // 1_000} sat of which the wallet does not say what became "
            f"(payment {outgoing.payment_id}). The money is held until that is known; the operator can find out."
        )
        tell_admin(tx, ctx, row, text, now)


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


def _after_all(tx: Tx, outgoing: Outgoing, fees_msat: int) -> Entry:
    """The wallet said that it failed, and paid it: the owner has that money twice. He gives back what is left."""
    if outgoing.to_wallet is not None:
        return _completed(tx, outgoing, fees_msat)
    return settled_after_all(
        outgoing.payment_id,
        outgoing.source,
        outgoing.wallet,
        outgoing.amount_msat + fees_msat,
        tx.balance(outgoing.source),
    )
