"""Incoming money: look at invoices, credit each settled one once, start what is paid for.

A notification is only a hint to look, and so is a zap receipt: the wallet's answer to our own
question is what counts. Every credit is keyed by its payment hash, so a second one changes nothing.
"""

from dataclasses import replace

from handlers.context import Context
from handlers.domain.ledger import payment
from handlers.ports import Incoming, IncomingState, Tx
from handlers.records import Container, InvoiceRecord, InvoiceState
from handlers.transitions import paid
from nips.nip57 import build_zap_receipt, parse_zap_request_untrusted

BATCH = 50
# (age of the invoice in seconds, seconds until the next look): quick at first, then patient.
PATIENCE = ((60, 2), (600, 10), (3_600, 60))
LAST_PATIENCE_S = 600


async def due_invoices(ctx: Context) -> list[str]:
    """Payment hashes to look at now. Each is put off at once, so that one that fails cannot block others."""
    return await ctx.store.write(lambda tx: _claim(tx, ctx.clock.now()))


def _claim(tx: Tx, now: int) -> list[str]:
    due = tx.invoices_to_look_at(now, BATCH)
    for invoice in due:
        tx.save_invoice(replace(invoice, next_look_at=now + patience(now - invoice.created_at)))
    return [invoice.payment_hash for invoice in due]


async def look_at(ctx: Context, payment_hash: str) -> None:
    """Ask the wallet about one invoice and book what it says. For a hash that is not ours: nothing."""
    invoice = await ctx.store.read(lambda tx: tx.invoice(payment_hash))
    if invoice is None or invoice.state is InvoiceState.SETTLED:
        return
    row = await ctx.store.read(lambda tx: tx.container(invoice.container))
    owner = row.wallet_key if row is not None else None
    incoming = await ctx.wallet.look_up(payment_hash, owner)
    await ctx.store.write(lambda tx: book(tx, ctx, payment_hash, incoming))
    if incoming.state is IncomingState.SETTLED:
        _wake_all(ctx)


async def look_at_wallet_of(ctx: Context, container: str) -> None:
    """Per-container wallets receive money that we made no invoice for: credit that as well."""
    row = await ctx.store.read(lambda tx: tx.container(container))
    if row is None or row.wallet_key is None:
        return
    for incoming in await ctx.wallet.received(row.wallet_key, row.created_at):
        known = await ctx.store.read(lambda tx, i=incoming: tx.invoice(i.payment_hash))  # type: ignore[misc]
        if known is not None:
            await look_at(ctx, incoming.payment_hash)
        else:
            await ctx.store.write(lambda tx, i=incoming: _book_direct(tx, ctx, row, i))  # type: ignore[misc]
            _wake_all(ctx)


def book(tx: Tx, ctx: Context, payment_hash: str, incoming: Incoming) -> None:
    """Write down what the wallet said of an invoice of ours."""
    invoice = tx.invoice(payment_hash)
    if invoice is None or invoice.state is InvoiceState.SETTLED:
        return
    now = ctx.clock.now()
    # A wallet that says "settled", but over less than the invoice, contradicts itself: no credit.
    if incoming.state is IncomingState.SETTLED and incoming.amount_msat >= invoice.amount_msat:
        tx.save_invoice(replace(invoice, state=InvoiceState.SETTLED))
        _credit(tx, ctx, invoice, now)
        _queue_receipt(tx, ctx, invoice, incoming, now)
        return
    # Whatever the answer: nobody is asked for ever.
    over = now > invoice.expires_at + ctx.policy.late_payment_s
    answered = incoming.state is IncomingState.NOT_YET
    tx.save_invoice(
        replace(
            invoice,
            state=InvoiceState.CLOSED if over else InvoiceState.OPEN,
            answered_at=now if answered else invoice.answered_at,
        )
    )


def _credit(tx: Tx, ctx: Context, invoice: InvoiceRecord, now: int) -> None:
    # The invoice's own amount is credited: a wallet may claim any other.
    entry = payment(invoice.payment_hash, invoice.container, invoice.wallet, invoice.amount_msat)
    if tx.post(entry, now):
        paid(tx, ctx, invoice.container, now)


def _book_direct(tx: Tx, ctx: Context, row: Container, incoming: Incoming) -> None:
    entry = payment(incoming.payment_hash, row.pubkey, row.wallet, incoming.amount_msat)
    now = ctx.clock.now()
    if tx.post(entry, now):
        paid(tx, ctx, row.pubkey, now)


def _queue_receipt(
    tx: Tx, ctx: Context, invoice: InvoiceRecord, incoming: Incoming, now: int
) -> None:
    if invoice.zap_request is None:
        return
    # Checked when the invoice was asked for; parsed again, since it was only text in between.
    request = parse_zap_request_untrusted(
        invoice.zap_request, recipient=invoice.container, amount_msat=invoice.amount_msat
    )
    receipt = build_zap_receipt(
        ctx.key,
        request,
        bolt11=invoice.bolt11,
        preimage=incoming.preimage,
        paid_at=incoming.settled_at or now,
    )
    # The zapper names relays; ours carry it too, where the container's followers look.
    tx.enqueue(
        receipt, tuple(dict.fromkeys([*request.relay_urls[:5], *ctx.places.relay_urls])), now
    )


def patience(age_s: int) -> int:
    """Seconds until the next look at something of that age."""
    return next((wait_s for limit_s, wait_s in PATIENCE if age_s < limit_s), LAST_PATIENCE_S)


def _wake_all(ctx: Context) -> None:
    ctx.wake.reconcile()
    ctx.wake.announce()
    ctx.wake.outbox()
