"""Incoming money: ask about invoices, credit each settled one once, start what is paid for.

A notification is only a hint to ask, and so is a zap receipt: the wallet's answer to our own
question is what counts. Every credit is keyed by its payment hash, so a second one changes nothing.
"""

from dataclasses import replace

from handlers.context import Context, Facts
from handlers.domain.ledger import MAIN_WALLET, Entry, payment
from handlers.domain.lifecycle import State
from handlers.owned import known
from handlers.patience import CLOCKS_DIFFER_S, claim
from handlers.ports import Incoming, IncomingState
from handlers.records import Container, InvoiceRecord, InvoiceState
from handlers.tables import Tx
from handlers.transitions import paid


async def look_up_invoices(ctx: Context) -> None:
    """Ask the wallet about every invoice whose time has come."""
    due = await ctx.store.write(_claim, ctx.clock.now())
    await ctx.tasks.each("invoice", due, lambda payment_hash: look_up(ctx, payment_hash))


def _claim(tx: Tx, now: int) -> list[str]:
    return [invoice.payment_hash for invoice in claim(tx.invoices, now)]


async def look_up(ctx: Context, payment_hash: str) -> None:
    """Ask the wallet about one invoice and book what it says. For a hash that is not ours: nothing."""
    invoice = await ctx.store.read(lambda tx: tx.invoices.find(payment_hash))
    if invoice is None or invoice.state is InvoiceState.SETTLED:
        return
    row = await ctx.store.read(known, invoice.container)
    owner = row.wallet_key if row is not None else None
    incoming = await ctx.wallet.look_up(payment_hash, owner)
    await ctx.store.write(_book, ctx.facts(), payment_hash, incoming)
    if incoming.state is IncomingState.SETTLED:
        _nudge_all(ctx)


async def look_up_wallets(ctx: Context) -> None:
    """Money that came to containers' wallets by itself, also while we were away or hints got lost."""
    standing = [state for state in State if state is not State.STOPPED]
    rows = await ctx.store.read(lambda tx: tx.containers.list_in(standing))
    own = [row.pubkey for row in rows if row.wallet != MAIN_WALLET]
    await ctx.tasks.each("wallet", own, lambda pubkey: look_up_wallet_of(ctx, pubkey))


async def look_up_wallet_of(ctx: Context, container: str) -> None:
    """Per-container wallets receive money that we made no invoice for: credit that as well."""
    row = await ctx.store.read(known, container)
    if row is None or row.wallet_key is None:
        return
    for incoming in await ctx.wallet.received(row.wallet_key, row.created_at):
        if await ctx.store.read(_is_known, incoming.payment_hash):
            await look_up(ctx, incoming.payment_hash)
        else:
            await ctx.store.write(_book_direct, ctx.facts(), row, incoming)
            _nudge_all(ctx)


def _is_known(tx: Tx, payment_hash: str) -> bool:
    return tx.invoices.find(payment_hash) is not None


def _book(tx: Tx, facts: Facts, payment_hash: str, incoming: Incoming) -> None:
    invoice = tx.invoices.find(payment_hash)
    if invoice is None or invoice.state is InvoiceState.SETTLED:
        return
    # A wallet that says "settled", but over less than the invoice, contradicts itself: no credit.
    if incoming.state is IncomingState.SETTLED and incoming.amount_msat >= invoice.amount_msat:
        _credit(tx, facts, invoice, incoming)
        return
    answered = incoming.state is IncomingState.NOT_YET
    over = _is_over(facts, invoice, answered=answered)
    state = InvoiceState.CLOSED if over else invoice.state
    answered_at = facts.now if answered else invoice.answered_at
    tx.invoices.save(replace(invoice, state=state, answered_at=answered_at))


def _is_over(facts: Facts, invoice: InvoiceRecord, *, answered: bool) -> bool:
    """Whether to ask no more: it was not paid in time, and cannot be any more; or nobody ever answers."""
    patience_s = CLOCKS_DIFFER_S if answered else facts.policy.late_payment_s
    return facts.now > invoice.expires_at + patience_s


def _credit(tx: Tx, facts: Facts, invoice: InvoiceRecord, incoming: Incoming) -> None:
    tx.invoices.save(replace(invoice, state=InvoiceState.SETTLED))
    # The invoice's own amount is credited: a wallet may claim any other.
    entry = payment(invoice.payment_hash, invoice.container, invoice.wallet, invoice.amount_msat)
    _post(tx, facts, entry, invoice.container)
    if invoice.zap_request is not None:
        # Only promised: whatever the zap request turns out to be, the money is credited.
        paid_at = incoming.settled_at or facts.now
        tx.outbox.promise_receipt(invoice.payment_hash, incoming.preimage, paid_at, facts.now)


def _book_direct(tx: Tx, facts: Facts, row: Container, incoming: Incoming) -> None:
    entry = payment(incoming.payment_hash, row.pubkey, row.wallet, incoming.amount_msat)
    _post(tx, facts, entry, row.pubkey)


def _post(tx: Tx, facts: Facts, entry: Entry, container: str) -> None:
    if tx.ledger.post(entry, facts.now):
        # In the archive nobody could ask for it.
        tx.archive.bring_back(container)
        paid(tx, facts, container)


def _nudge_all(ctx: Context) -> None:
    ctx.durability.soon()
    ctx.nudge.reconcile()
    ctx.nudge.announce()
    ctx.nudge.outbox()
