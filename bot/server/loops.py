"""Runs `handlers.loops.Loop` values: the duties of the handlers, and what the server does beside. Each goes on after
any surprise, which is logged once."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import structlog
import trio

from bot.boot.heads import build_head_event
from bot.server.announcement import Announcement
from bot.server.outbox import Outbox, Strangers
from bot.server.parts import App
from handlers.alarms import Alarm
from handlers.context import Context
from handlers.domain.lifecycle import State
from handlers.duties.announce import instance_events
from handlers.duties.charge import tick
from handlers.duties.incoming import look_up, look_up_wallet_of
from handlers.duties.outgoing import hear, look_up_of_wallet
from handlers.duties.reconcile import survey
from handlers.loops import Loop, duties
from handlers.ports import Hint
from handlers.transitions import held_units
from keycrux_client.refresh import EVERY_S
from keycrux_client.refresh import RETRY_S as RETRY_ESCROW_S
from keycrux_client.shares import Head
from netstack.control import Refused

log = structlog.get_logger()
RETRY_S = 2
AT_ONCE = 8
# Without escrow, whoever comes now would lose all when this enclave ends.
UNSAFE_S = 3_600
HEAD_EVERY_S = 10
_SERVED = [State.WAITING, State.DEPLOYED, State.PAUSED, State.SHELVED]


async def run_loop(app: App, loop: Loop) -> None:
    """Until cancelled."""
    nudge = app.nudges.named(loop.nudge)
    while True:
        try:
            await loop.once(app.ctx)
        except Exception:
            log.exception("loop failed", loop=loop.name)
        await trio.sleep(loop.rest_s)
        await nudge.wait(loop.every_s)


class TrioTasks:
    """`handlers.ports.Tasks`; what is begun runs in ``nursery``."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._busy: set[str] = set()

    async def each(
        self, what: str, keys: Sequence[str], work: Callable[[str], Awaitable[None]]
    ) -> None:
        limiter = trio.CapacityLimiter(AT_ONCE)

        async def one(key: str) -> None:
            async with limiter:
                await _guarded(what, key, partial(work, key))

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(one, key)

    async def begin(self, what: str, key: str, work: Callable[[], Awaitable[None]]) -> None:
        if key not in self._busy:
            self._busy.add(key)
            self._nursery.start_soon(self._run, what, key, work)

    async def _run(self, what: str, key: str, work: Callable[[], Awaitable[None]]) -> None:
        log.info("begun", what=what, key=key)
        try:
            await _guarded(what, key, work)
        finally:
            self._busy.discard(key)


async def _guarded(what: str, key: str, work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except Exception:
        log.exception("failed", what=what, key=key)


async def look_at_engine(app: App) -> None:
    """Before anybody is answered: what ran while we were away must be known, and be charged."""
    while True:
        try:
            await survey(app.ctx)
            await tick(app.ctx)
            return
        except Exception:
            log.exception("the engine does not answer yet")
            await trio.sleep(RETRY_S)


async def run_hints(app: App) -> None:
    """What the wallet says by itself."""
    async for hint in app.wallet.hints:
        await _guarded(
            "hint", hint.payment_hash or hint.container or "", partial(_take, app.ctx, hint)
        )


async def _take(ctx: Context, hint: Hint) -> None:
    if hint.payment_hash is not None and hint.paid is not None:
        await hear(ctx, hint.payment_hash, hint.paid)
    elif hint.payment_hash is not None:
        await look_up(ctx, hint.payment_hash)
    elif hint.container is not None:
        await look_up_wallet_of(ctx, hint.container)
        await look_up_of_wallet(ctx, hint.container)


class InstanceAnnouncer:
    """Hourly, before our attestation ends, and soon after what is told in it changed."""

    def __init__(self, app: App) -> None:
        presence = app.ctx.presence
        self._urls = (*presence.relay_urls, *presence.announce_urls)
        self._announcement = Announcement(app.outlet)
        self._due_at = -float("inf")
        self._told: tuple[int, str | None, str | None] | None = None

    async def once(self, ctx: Context) -> None:
        told = (
            await ctx.store.read(held_units),
            ctx.alarms.no_containers_because,
            ctx.wallet.service_pubkey,
        )
        if told != self._told or trio.current_time() >= self._due_at:
            events, again_in_s = await instance_events(ctx)
            self._due_at, self._told = trio.current_time() + again_in_s, told
            self._announcement.renew(events, self._urls)
        await self._announcement.bring()


class HeadTeller:
    """The head that escrow holds, on our relays as well: there a lost one is missed (`bot.boot.heads`)."""

    def __init__(self, app: App) -> None:
        self._checkpointer, self._urls = app.checkpointer, app.ctx.presence.relay_urls
        self._announcement = Announcement(app.outlet)
        self._told: Head | None = None
        self._told_at = 0

    async def once(self, ctx: Context) -> None:
        head = self._checkpointer.anchored if self._checkpointer is not None else None
        if head is not None and head != self._told:
            # Within one second the relay would keep whichever has the smaller id.
            self._told, self._told_at = head, max(self._told_at + 1, ctx.clock.now())
            event = build_head_event(ctx.key, head, self._told_at)
            self._announcement.renew([event], self._urls)
        await self._announcement.bring()


async def run_escrow(app: App) -> None:
    """Services forget our key when they restart, and after three days."""
    safe_at = trio.current_time()
    while app.keeper is not None:
        safe = False
        try:
            done = await app.keeper.refresh()
            safe = done.is_safe
            level = log.info if safe and not done.conflicts else log.warning
            level("escrow", stored=done.stored, failed=done.failed, conflicts=done.conflicts)
        except Exception:
            log.exception("loop failed", loop="escrow")
        now = trio.current_time()
        safe_at = now if safe else safe_at
        unsafe = now - safe_at >= UNSAFE_S
        app.ctx.alarms.set(Alarm.ESCROW, "no service holds it" if unsafe else None)
        await trio.sleep(EVERY_S if safe else RETRY_ESCROW_S)


async def tell_network(app: App, ctx: Context) -> None:
    """Ports of what runs are open, all others closed; what a container sends and receives is counted."""
    if app.network is None:
        return
    rows = await ctx.store.read(lambda tx: tx.containers.list_in([State.DEPLOYED]))
    try:
        await app.network.set(
            [port for row in rows for port in row.ports], await app.engine.addresses()
        )
    except (Refused, OSError, trio.TooSlowError) as error:
        log.warning("network.not_told", reason=str(error) or type(error).__name__)


async def serve_containers(app: App, ctx: Context) -> None:
    """The embedded relay keeps what is by and to our containers, as they come and go."""
    if app.relay is not None:
        rows = await ctx.store.read(lambda tx: tx.containers.list_in(_SERVED))
        await app.relay.serve_for("containers", [row.pubkey for row in rows])


async def _prune(app: App, ctx: Context) -> None:
    await app.seen.prune()
    await app.refused.prune()


def loops(app: App, nursery: trio.Nursery) -> tuple[Loop, ...]:
    """Everything that a running server does again and again."""
    outbox = Outbox(app.ctx, app.outlet, Strangers(app.outlet, nursery))
    own = [Loop("own wallet", app.own_wallet.once, 1)] if app.own_wallet is not None else []
    return (
        *duties(app.config.policy),
        *own,
        Loop("outbox", outbox.once, 2, nudge="outbox", rest_s=0.05),
        Loop("announce instance", InstanceAnnouncer(app).once, 5),
        Loop("head", HeadTeller(app).once, HEAD_EVERY_S),
        Loop("network", partial(tell_network, app), 1),
        Loop("served", partial(serve_containers, app), 5),
        Loop("prune", partial(_prune, app), 10),
    )
