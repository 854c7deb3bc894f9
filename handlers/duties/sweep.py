"""With per-container wallets, what a container has used up still lies in its wallet: collect it.

The same caution as for a withdrawal: the payment is written down before it is sent, at most one per
container is under way, and only the wallet's final word is booked.
"""

import secrets

from handlers.context import Context, Facts
from handlers.domain.ledger import MAIN_WALLET, REVENUE, container_account
from handlers.domain.lifecycle import State
from handlers.domain.pricing import MSAT_PER_SAT, sat_floor
from handlers.duties.outgoing import book, send
from handlers.fees import fee_reserve
from handlers.ports import Minted
from handlers.records import Container, Outgoing, OutgoingState
from handlers.tables import Tx

RETRY_S = 3_600


async def sweep(ctx: Context) -> None:
    """Move earned revenue from containers' wallets to our own, where it is worth a payment."""
    for row, amount_msat in await ctx.store.read(_worth_it, ctx.facts()):
        await _sweep_one(ctx, row, amount_msat)


def _worth_it(tx: Tx, facts: Facts) -> list[tuple[Container, int]]:
    under_way = {outgoing.wallet for outgoing in tx.outgoing.list_unknown()}
    reserve = fee_reserve(tx, facts)
    found = []
    for row in tx.containers.list_in(tuple(State)):
        if row.wallet == MAIN_WALLET or row.wallet in under_way:
            continue
        # What the wallet holds, minus what is still the tenant's, minus room for the fee.
        earned = -tx.ledger.balance(row.wallet) - tx.ledger.balance(container_account(row.pubkey))
        amount_msat = sat_floor(earned - reserve.of(max(0, earned))) * MSAT_PER_SAT
        if amount_msat >= facts.policy.sweep_msat and not _failed_lately(tx, facts, row):
            found.append((row, amount_msat))
    return found


def _failed_lately(tx: Tx, facts: Facts, row: Container) -> bool:
    last = tx.outgoing.find_last_sweep_of(row.wallet)
    return (
        last is not None
        and last.state is OutgoingState.FAILED
        and facts.now - last.created_at < RETRY_S
    )


async def _sweep_one(ctx: Context, row: Container, amount_msat: int) -> None:
    minted = await ctx.wallet.make_own_invoice(amount_msat, "sweep")
    if not isinstance(minted, Minted):
        return
    outgoing = Outgoing(
        payment_id=secrets.token_hex(16),
        payment_hash=minted.payment_hash,
        bolt11=minted.bolt11,
        source=REVENUE,
        wallet=row.wallet,
        amount_msat=amount_msat,
        fee_reserve_msat=0,
        created_at=ctx.clock.now(),
        valid_until=minted.expires_at,
        to_wallet=MAIN_WALLET,
    )
    await ctx.store.write(lambda tx: tx.outgoing.save(outgoing))
    result = await send(ctx, outgoing, row.key)
    await ctx.store.write(book, ctx.facts(), outgoing.payment_id, result)
