"""What time alone brings about: unpaid places expire, long pauses give theirs back, old data goes, and what is over
leaves the books that are read all the time."""

from handlers.context import Context, Facts
from handlers.domain.lifecycle import Happening, State
from handlers.records import Container
from handlers.tables import Tx
from handlers.transitions import advance

KEEP_CLOSED_S = 30 * 24 * 3600
# When the wallet stays silent for so long, a place is given back all the same.
PATIENCE_S = 3_600
# By so much a clock may be set right without anything following.
STEP_S = 60
ARCHIVED_AT_ONCE = 200
_TIMED = [State.WAITING, State.PAUSED, State.SHELVED, State.EXPIRED, State.FAILED]


class Upkeep:
    """Remembers how far the wall clock and the boot clock were apart: who sets our clock a month ahead must not have
    everybody's data deleted for that. While we are away nothing can be remembered."""

    def __init__(self) -> None:
        self._apart_s: int | None = None
        self._seen_at = 0

    async def once(self, ctx: Context) -> None:
        """Move every container whose time has come."""
        facts = ctx.facts()
        await self._watch_clock(ctx, facts)
        if await ctx.store.write(_move_all, facts):
            ctx.nudge.reconcile()
            ctx.nudge.announce()
            ctx.nudge.outbox()

    async def _watch_clock(self, ctx: Context, facts: Facts) -> None:
        apart_s = facts.now - facts.boot_ms // 1_000
        # Compared with where it was when something last followed: a clock may creep as well.
        step_s = 0 if self._apart_s is None else apart_s - self._apart_s
        if abs(step_s) > STEP_S:
            await ctx.store.write(_follow_step, self._seen_at, facts.now, step_s)
        if self._apart_s is None or abs(step_s) > STEP_S:
            self._apart_s = apart_s
        self._seen_at = facts.now


def _follow_step(tx: Tx, before: int, now: int, step_s: int) -> None:
    """What began before the step began as long ago as it did. What began after it has the new time already: behind a
    step back the two are told apart only where a time lies ahead, and the rest is kept for longer."""
    if step_s > 0:
        tx.containers.shift_times(step_s, after=-1, until=before + STEP_S)
    else:
        tx.containers.shift_times(step_s, after=now, until=before + STEP_S)


async def archive(ctx: Context) -> None:
    """Take out what is over. What it left in the ledger stays there for good."""
    await ctx.store.write(_archive, ctx.facts())


def _archive(tx: Tx, facts: Facts) -> int:
    tx.invoices.prune(facts.now - KEEP_CLOSED_S)
    # Of a wallet of its own, what is worth a sweep must have been swept; less than twice as much may be left of it.
    left_msat = 2 * facts.policy.sweep_msat
    ended_before = facts.now - facts.policy.archive_after_s
    return tx.archive.fill(ended_before, left_msat, ARCHIVED_AT_ONCE)


def _move_all(tx: Tx, facts: Facts) -> int:
    moved = 0
    for row in tx.containers.list_in(_TIMED):
        happening = _happening(tx, facts, row)
        if happening is not None and advance(tx, facts, row, happening, row.reason) is not None:
            moved += 1
    return moved


def _happening(tx: Tx, facts: Facts, row: Container) -> Happening | None:
    since_s, policy = facts.now - row.state_since, facts.policy
    match row.state:
        case State.WAITING:
            over = since_s > policy.invoice_valid_s and _is_unpaid(tx, facts, row)
            return Happening.INVOICE_EXPIRED if over else None
        case State.PAUSED:
            return Happening.GRACE_OVER if since_s > policy.grace_s else None
        case State.EXPIRED:
            # Nothing ever ran, so there is no data; only a late payment is waited for.
            return Happening.RETENTION_OVER if since_s > policy.unpaid_kept_s else None
        case State.SHELVED | State.FAILED:
            return Happening.RETENTION_OVER if since_s > policy.retention_s else None
        case State.DEPLOYED | State.STOPPED:
            return None


def _is_unpaid(tx: Tx, facts: Facts, row: Container) -> bool:
    """Whether the wallet said so after the invoice expired: we may have been away when it was paid.

    The first invoice alone counts: asking for others must not keep an unpaid place for ever.
    """
    first = next(iter(tx.invoices.list_open_of(row.pubkey)), None)
    if first is None or first.created_at > row.created_at + facts.policy.invoice_valid_s:
        return True
    silent = facts.now > first.expires_at + PATIENCE_S
    return first.answered_at >= first.expires_at or silent
