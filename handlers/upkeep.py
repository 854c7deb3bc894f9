"""What time alone brings about: unpaid places expire, long pauses give theirs back, old data goes."""

from handlers.context import Context
from handlers.domain.lifecycle import Happening, State
from handlers.ports import Tx
from handlers.records import Container
from handlers.transitions import advance


async def upkeep(ctx: Context) -> None:
    """Move every container whose time has come."""
    if await ctx.store.write(lambda tx: _move_all(tx, ctx)):
        ctx.wake.reconcile()
        ctx.wake.announce()
        ctx.wake.outbox()


def _move_all(tx: Tx, ctx: Context) -> int:
    now = ctx.clock.now()
    moved = 0
    for row in tx.containers(
        [State.WAITING, State.PAUSED, State.SHELVED, State.EXPIRED, State.FAILED]
    ):
        happening = _happening(ctx, row, now)
        if happening is not None and advance(tx, ctx, row, happening, now, row.reason) is not None:
            moved += 1
    return moved


def _happening(ctx: Context, row: Container, now: int) -> Happening | None:
    since_s = now - row.state_since
    match row.state:
        case State.WAITING:
            return Happening.INVOICE_EXPIRED if since_s > ctx.policy.invoice_valid_s else None
        case State.PAUSED:
            return Happening.GRACE_OVER if since_s > ctx.policy.grace_s else None
        case State.SHELVED | State.EXPIRED | State.FAILED:
            return Happening.RETENTION_OVER if since_s > ctx.policy.retention_s else None
        case State.DEPLOYED | State.STOPPED:
            return None
