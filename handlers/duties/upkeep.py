"""What time alone brings about: unpaid places expire, long pauses give theirs back, old data goes."""

from handlers.context import Context
from handlers.domain.lifecycle import Happening, State
from handlers.ports import Tx
from handlers.records import Container
from handlers.transitions import advance

KEEP_CLOSED_S = 30 * 24 * 3600
# When the wallet stays silent for so long, a place is given back all the same.
PATIENCE_S = 3_600


async def upkeep(ctx: Context) -> None:
    """Move every container whose time has come."""
    if await ctx.store.write(lambda tx: _move_all(tx, ctx)):
        ctx.wake.reconcile()
        ctx.wake.announce()
        ctx.wake.outbox()


def _move_all(tx: Tx, ctx: Context) -> int:
    now = ctx.clock.now()
    tx.prune_invoices(now - KEEP_CLOSED_S)
    moved = 0
    for row in tx.containers(
        [State.WAITING, State.PAUSED, State.SHELVED, State.EXPIRED, State.FAILED]
    ):
        happening = _happening(tx, ctx, row, now)
        if happening is not None and advance(tx, ctx, row, happening, now, row.reason) is not None:
            moved += 1
    return moved


def _happening(tx: Tx, ctx: Context, row: Container, now: int) -> Happening | None:
    since_s = now - row.state_since
    match row.state:
        case State.WAITING:
            over = since_s > ctx.policy.invoice_valid_s and _is_unpaid(tx, row, now)
            return Happening.INVOICE_EXPIRED if over else None
        case State.PAUSED:
            return Happening.GRACE_OVER if since_s > ctx.policy.grace_s else None
        case State.EXPIRED:
            # Nothing ever ran, so there is no data; only a late payment is waited for.
            return Happening.RETENTION_OVER if since_s > ctx.policy.late_payment_s else None
        case State.SHELVED | State.FAILED:
            return Happening.RETENTION_OVER if since_s > ctx.policy.retention_s else None
        case State.DEPLOYED | State.STOPPED:
            return None


def _is_unpaid(tx: Tx, row: Container, now: int) -> bool:
    """Whether the wallet said so after the invoices expired: we may have been away when they were paid."""
    open_ones = tx.invoices_of(row.pubkey)
    return all(i.answered_at >= i.expires_at or now > i.expires_at + PATIENCE_S for i in open_ones)
