"""Outgoing payments after they were written down: ask about them until the wallet's word is final.

Nothing here ever sends a payment again. What the wallet neither confirms nor denies stays UNKNOWN, and its money
held, until `handlers.domain.evidence` says that it can never be paid any more, or the operator resolves it.
"""

from dataclasses import replace

from handlers.context import Context, Facts
from handlers.domain.evidence import Book, Witnesses, has_failed, is_over
from handlers.domain.ledger import (
    Entry,
    complete_outgoing,
    release_outgoing,
    settled_after_all,
    transfer,
)
from handlers.domain.pricing import sat_floor
from handlers.owned import known
from handlers.patience import claim
from handlers.ports import PayResult, PayStatus
from handlers.records import Outgoing, OutgoingState
from handlers.tables import Tx
from handlers.transitions import paid, tell_admin
from nips.keys import SecretKey

FINAL = (PayStatus.SETTLED, PayStatus.FAILED)


async def send(ctx: Context, outgoing: Outgoing, wallet_key: SecretKey | None) -> PayResult:
    """Hand a payment that is written down to the wallet, once; not before a restore would know of it, or another life
    of ours would pay the same balance out again. FAILED here means that it was never sent."""
    if not await ctx.durability.reached():
        return PayResult(
            PayStatus.FAILED, reason="it cannot be made safe now, so it was not sent; retry later"
        )
    return await ctx.wallet.pay(outgoing.bolt11, outgoing.amount_msat, wallet_key)


async def look_up_payments(ctx: Context) -> None:
    """Ask the wallet about every payment whose time has come."""
    due = await ctx.store.write(_claim, ctx.clock.now())
    await ctx.tasks.each("payment", due, lambda payment_id: look_up(ctx, payment_id))


def _claim(tx: Tx, now: int) -> list[str]:
    return [outgoing.payment_id for outgoing in claim(tx.outgoing, now)]


async def look_up(ctx: Context, payment_id: str) -> None:
    """Ask the wallet what became of a payment, and book a final word."""
    outgoing = await ctx.store.read(lambda tx: tx.outgoing.find(payment_id))
    if outgoing is None or outgoing.state is not OutgoingState.UNKNOWN:
        return
    result = await _ask(ctx, outgoing)
    if result.status is PayStatus.ABSENT and is_over(outgoing.valid_until, ctx.clock.now()):
        result = await _judge_absence(ctx, outgoing, result)
    await _book(ctx, outgoing, result)


async def _book(ctx: Context, outgoing: Outgoing, result: PayResult) -> None:
    await ctx.store.write(book, ctx.facts(), outgoing.payment_id, result)
    ctx.dues.hurry(outgoing.source.removeprefix("container:"))
    if result.status in FINAL:
        ctx.durability.soon()


async def hear(ctx: Context, payment_hash: str, said: PayResult) -> None:
    """The wallet spoke of a payment by itself: believe a final word, for all else ask."""
    outgoing = await ctx.store.read(lambda tx: tx.outgoing.find_by_hash(payment_hash))
    if outgoing is None:
        return
    if said.status in FINAL:
        await _book(ctx, outgoing, said)
    else:
        await look_up(ctx, outgoing.payment_id)


async def look_up_of_wallet(ctx: Context, container: str) -> None:
    """Something happened in a container's own wallet: maybe what we wait to know."""
    for outgoing in await ctx.store.read(lambda tx: tx.outgoing.list_unknown()):
        if outgoing.wallet == f"wallet:{container}":
            await look_up(ctx, outgoing.payment_id)


async def _ask(ctx: Context, outgoing: Outgoing) -> PayResult:
    container = outgoing.wallet.removeprefix("wallet:")
    row = await ctx.store.read(known, container)
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
    witness = await ctx.store.read(
        lambda tx: tx.outgoing.find_witness(payment_id, unsettled=unsettled)
    )
    if witness is None:
        return frozenset()
    shown = await _ask(ctx, witness)
    return shown.books if shown.status is not PayStatus.ABSENT else frozenset()


def book(tx: Tx, facts: Facts, payment_id: str, result: PayResult) -> None:
    """Book what is known of a payment. Idempotent: the first final word counts, a later one changes nothing,
    except that what was given back as failed and is paid after all is booked as such."""
    outgoing = tx.outgoing.find(payment_id)
    if outgoing is None or outgoing.state is OutgoingState.SETTLED:
        return
    outgoing = _seen(tx, outgoing, result)
    match outgoing.state, result.status:
        case OutgoingState.UNKNOWN, PayStatus.SETTLED:
            tx.ledger.post(_completed(tx, outgoing, result.fees_msat), facts.now)
            _save_settled(tx, outgoing, result)
        case OutgoingState.FAILED, PayStatus.SETTLED:
            tx.ledger.post(_after_all(tx, outgoing, result.fees_msat), facts.now)
            _save_settled(tx, outgoing, result)
        case OutgoingState.UNKNOWN, PayStatus.FAILED:
            if outgoing.to_wallet is None:
                tx.ledger.post(_released(outgoing), facts.now)
            tx.outgoing.save(replace(outgoing, state=OutgoingState.FAILED))
            # The money is back: what was paused for lack of it may run again.
            source = outgoing.source.removeprefix("container:")
            paid(tx, facts, source, "got the money of a failed withdrawal back")
        case OutgoingState.UNKNOWN, _:
            _tell_if_over(tx, facts, outgoing)
        case _:
            pass


def resolve(tx: Tx, facts: Facts, payment_id: str, result: PayResult) -> str:
    """The operator's word on a payment that is UNKNOWN, or that was given back; what came of it, in words for him."""
    before = tx.outgoing.find(payment_id)
    book(tx, facts, payment_id, result)
    after = tx.outgoing.find(payment_id)
    if before is None or after is None or before.state is after.state:
        return f"nothing changes: it is {before.state.value if before else 'not there'}"
    row = tx.containers.find(after.source.removeprefix("container:"))
    if row is not None:
        why = f" ({result.reason})" if result.reason else ""
        text = (
            f"has a withdrawal of {sat_floor(after.amount_msat)} sat that the operator looked up in the wallet: "
            f"it {after.state.value}{why}."
        )
        tell_admin(tx, facts, row, text)
    return f"{payment_id} is {after.state.value} now"


def _seen(tx: Tx, outgoing: Outgoing, result: PayResult) -> Outgoing:
    """Remember that a book shows payments on their way: it may be a witness for others."""
    if outgoing.seen_unsettled or not result.is_seen_unsettled:
        return outgoing
    outgoing = replace(outgoing, seen_unsettled=True)
    tx.outgoing.save(outgoing)
    return outgoing


def _save_settled(tx: Tx, outgoing: Outgoing, result: PayResult) -> None:
    tx.outgoing.save(replace(outgoing, state=OutgoingState.SETTLED, fees_msat=result.fees_msat))


def _tell_if_over(tx: Tx, facts: Facts, outgoing: Outgoing) -> None:
    """Nobody who waits for his money is left without a word."""
    if outgoing.told or not is_over(outgoing.valid_until, facts.now):
        return
    tx.outgoing.save(replace(outgoing, told=True))
    row = tx.containers.find(outgoing.source.removeprefix("container:"))
    if row is not None:
        text = (
            f"has a withdrawal of {sat_floor(outgoing.amount_msat)} sat of which the wallet does not say what became "
            f"(payment {outgoing.payment_id}). The money is held until that is known; the operator can find out."
        )
        tell_admin(tx, facts, row, text)


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
        tx.ledger.balance(outgoing.source),
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
        tx.ledger.balance(outgoing.source),
    )
