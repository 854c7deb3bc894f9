"""A container's lightning address: LNURL-pay (LUD-06/16) with zaps (NIP-57)."""

from typing import Any

from handlers.commands.topup import mint_for
from handlers.context import Context
from handlers.errors import Refusal, invalid
from handlers.owned import payable
from nips import lnurl
from nips.errors import BadRequest
from nips.nip19 import npub
from nips.nip57 import parse_zap_request_untrusted


async def pay_request(ctx: Context, pubkey: str) -> dict[str, Any] | Refusal:
    """The first answer: limits, metadata, and the callback."""
    row = await ctx.store.read(payable, pubkey)
    if isinstance(row, Refusal):
        return row
    return lnurl.pay_request(
        callback=f"{ctx.presence.public_url}/lnurlp/{npub(pubkey)}/callback",
        min_msat=ctx.policy.min_topup_msat,
        max_msat=ctx.policy.max_topup_msat,
        text=_metadata(ctx, row.name, pubkey),
        nostr_pubkey=ctx.key.pubkey,
    )


async def pay_callback(
    ctx: Context, pubkey: str, amount_msat: int, zap_request: str | None
) -> dict[str, Any] | Refusal:
    """The second answer: an invoice that commits to the zap request, or to the metadata."""
    row = await ctx.store.read(payable, pubkey)
    if isinstance(row, Refusal):
        return row
    if zap_request is None:
        description_hash = lnurl.metadata_hash(_metadata(ctx, row.name, pubkey))
    else:
        try:
            checked = parse_zap_request_untrusted(
                zap_request, recipient=pubkey, amount_msat=amount_msat
            )
        except BadRequest as error:
            return invalid(str(error))
        description_hash = checked.description_hash
    minted = await mint_for(ctx, None, pubkey, amount_msat, "zap", description_hash, zap_request)
    if isinstance(minted, Refusal):
        return minted
    return lnurl.invoice_answer(minted.bolt11)


def _metadata(ctx: Context, name: str, pubkey: str) -> str:
    return lnurl.metadata(name, f"{npub(pubkey)}@{ctx.presence.lud16_host}")
