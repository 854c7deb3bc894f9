"""With per-container wallets, what a container has used up still lies in its wallet: collect it.

The same caution as for a withdrawal: the payment is written down before it is sent, at most one per
container is under way, and only the wallet's final word is booked.
"""

import secrets

from handlers.commands.withdraw import fee_reserve
from handlers.context import Context
from handlers.domain.ledger import MAIN_WALLET, REVENUE, container_account
from handlers.domain.pricing import MSAT_PER_SAT, sat_floor
from handlers.duties.outgoing import conclude
from handlers.ports import Minted, Tx
from handlers.records import Container, Outgoing, OutgoingState

RETRY_S = 3_600


async def sweep(ctx: Context) -> None:
    """Move earned revenue from containers' wallets to our own, where it is worth a payment."""
    for row, amount_msat in await ctx.store.read(lambda tx: _worth_it(tx, ctx)):
        await _sweep_one(ctx, row, amount_msat)


def _worth_it(tx: Tx, ctx: Context) -> list[tuple[Container, int]]:
    under_way = {o.wallet for o in tx.unknown_outgoing()}
    now = ctx.clock.now()
    reserve = fee_reserve(tx, ctx.policy, now)
    found = []
    for row in tx.containers():
        if row.wallet == MAIN_WALLET or row.wallet in under_way or _failed_lately(tx, row, now):
            continue
        # What the wallet holds, minus what is still the tenant's, minus room for the fee.
        earned = -tx.balance(row.wallet) - tx.balance(container_account(row.pubkey))
        amount_msat = sat_floor(earned - reserve.of(max(0, earned))) * MSAT_PER_SAT
        if amount_msat >= ctx.policy.sweep_msat:
            found.append((row, amount_msat))
    return found


def _failed_lately(tx: Tx, row: Container, now: int) -> bool:
    last = tx.last_sweep_of(row.wallet)
    failed = last is not None and last.state is OutgoingState.FAILED
    return failed and last is not None and now - last.created_at < RETRY_S


async def _sweep_one(ctx: Context, row: Container, amount_msat: int) -> None:
    minted = await ctx.wallet.make_own_invoice(amount_msat, "sweep")
    if not isinstance(minted, Minted):
        return
    now = ctx.clock.now()
    outgoing = Outgoing(
        payment_id=secrets.token_hex(16),
        payment_hash=minted.payment_hash,
        bolt11=minted.bolt11,
        source=REVENUE,
        wallet=row.wallet,
        amount_msat=amount_msat,
        fee_reserve_msat=0,
        created_at=now,
        valid_until=minted.expires_at,
        to_wallet=MAIN_WALLET,
    )
    await ctx.store.write(lambda tx: tx.add_outgoing(outgoing))
    result = await ctx.wallet.pay(minted.bolt11, amount_msat, row.key)
    await ctx.store.write(
        lambda tx: conclude(tx, ctx, outgoing.payment_id, result, ctx.clock.now())
    )
