"""What a transaction only intended to say becomes an event when it is sent: keys never enter the store's thread."""

import json
from collections.abc import Mapping, Sequence

from handlers.context import Context
from handlers.records import Intent, OutboxItem
from nips.errors import BadInput
from nips.event import VerifiedEvent
from nips.nip17 import wrap_message
from nips.nip57 import build_zap_receipt, parse_zap_request_untrusted

Sealed = tuple[VerifiedEvent, Sequence[str]]


async def seal(ctx: Context, item: OutboxItem) -> Sealed | None:
    """The event, and relays beside our own where it goes; None when nothing can be said any more."""
    body = json.loads(item.body)
    match item.intent:
        case Intent.MESSAGE:
            return wrap_message(ctx.key, body["to"], body["text"], ctx.clock.now()), ()
        case Intent.RECEIPT:
            return await _receipt(ctx, body)
        case Intent.EVENT:
            raise ValueError("an event is sealed already")


async def _receipt(ctx: Context, body: Mapping[str, object]) -> Sealed | None:
    payment_hash = str(body["payment_hash"])
    invoice = await ctx.store.read(lambda tx: tx.invoices.find(payment_hash))
    if invoice is None or invoice.zap_request is None:
        return None
    try:
        # Checked when the invoice was asked for; parsed again, since it was only text in between.
        request = parse_zap_request_untrusted(
            invoice.zap_request, recipient=invoice.container, amount_msat=invoice.amount_msat
        )
    except BadInput:
        # The money is credited; only the receipt cannot be made.
        return None
    preimage, paid_at = body["preimage"], body["paid_at"]
    receipt = build_zap_receipt(
        ctx.key,
        request,
        bolt11=invoice.bolt11,
        preimage=preimage if isinstance(preimage, str) else None,
        paid_at=paid_at if isinstance(paid_at, int) else ctx.clock.now(),
    )
    # The zapper names relays; ours carry it too, where the container's followers look.
    return receipt, request.relay_urls[:5]
