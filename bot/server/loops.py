"""What the server does by itself, again and again. `LOOPS` is the list; each goes on after any surprise."""

from collections.abc import Awaitable, Callable

import structlog
import trio

from bot.server.announcement import Announcement
from bot.server.outbox import Outbox, Strangers
from bot.server.parts import App
from handlers.context import Context
from handlers.domain.lifecycle import State
from handlers.domain.plan import Do
from handlers.duties.announce import instance_events, queue_container_events
from handlers.duties.charge import tick
from handlers.duties.outgoing import due_payments, follow, heard, heard_of_wallet
from handlers.duties.reconcile import carry_out, survey
from handlers.duties.settle import due_invoices, look_at, look_at_wallet_of
from handlers.duties.sweep import sweep
from handlers.duties.upkeep import upkeep
from handlers.ports import Hint
from keycrux_client.refresh import EVERY_S
from keycrux_client.refresh import RETRY_S as RETRY_ESCROW_S
from netstack.control import Refused

log = structlog.get_logger()
RETRY_S = 2
LOOKS_AT_ONCE = 8
# Without escrow, whoever comes now would lose all when this enclave ends.
UNSAFE_S = 3_600


async def _every(what: str, seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    """Do it again and again; a surprise is logged once and the loop goes on."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("loop failed", loop=what)
        await trio.sleep(seconds)


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


async def _each(
    what: str, keys: list[str], work: Callable[[Context, str], Awaitable[None]], ctx: Context
) -> None:
    """Some at a time; a surprise with one of them is logged and concerns no other."""
    limiter = trio.CapacityLimiter(LOOKS_AT_ONCE)

    async def one(key: str) -> None:
        async with limiter:
            try:
                await work(ctx, key)
            except Exception:
                log.exception("look failed", what=what, key=key)

    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(one, key)


async def _invoices(app: App) -> None:
    async def once() -> None:
        await _each("invoice", await due_invoices(app.ctx), look_at, app.ctx)

    await _every("invoices", 1, once)


async def _payments(app: App) -> None:
    async def once() -> None:
        await _each("payment", await due_payments(app.ctx), follow, app.ctx)

    await _every("payments", 1, once)


async def _wallets(app: App) -> None:
    """Money that came to containers' wallets by itself, also while we were away or hints got lost."""

    async def once() -> None:
        rows = await app.ctx.store.read(lambda tx: tx.containers())
        own = [row.pubkey for row in rows if row.wallet_key is not None]
        await _each("wallet", own, look_at_wallet_of, app.ctx)

    await _every("wallets", 300, once)


async def _sweep(app: App) -> None:
    await _every("sweep", 10, lambda: sweep(app.ctx))


async def _hints(app: App) -> None:
    async for hint in app.wallet.hints:
        try:
            await _take(app.ctx, hint)
        except Exception:
            log.exception("loop failed", loop="hints")


async def _take(ctx: Context, hint: Hint) -> None:
    if hint.payment_hash is not None and hint.paid is not None:
        await heard(ctx, hint.payment_hash, hint.paid)
    elif hint.payment_hash is not None:
        await look_at(ctx, hint.payment_hash)
    elif hint.container is not None:
        await look_at_wallet_of(ctx, hint.container)
        await heard_of_wallet(ctx, hint.container)


async def _meter(app: App) -> None:
    await _every("meter", app.config.policy.rhythm.tick_ms / 1_000, lambda: tick(app.ctx))


async def _upkeep(app: App) -> None:
    await _every("upkeep", 5, lambda: upkeep(app.ctx))


async def _reconcile(app: App) -> None:
    """Survey, then act on each container that is not being acted on already."""
    busy: set[str] = set()

    async def act(pubkey: str, do: Do) -> None:
        done = False
        try:
            log.info("engine", container=pubkey, do=do.value)
            done = await carry_out(app.ctx, pubkey, do)
        except Exception:
            log.exception("reconcile failed", container=pubkey, do=do.value)
        if not done:
            await trio.sleep(RETRY_S)
        busy.discard(pubkey)
        # What was put off because this container was busy may be due now.
        app.wakes.reconcile()

    async with trio.open_nursery() as nursery:
        while True:
            try:
                actions = await survey(app.ctx)
            except Exception:
                log.exception("loop failed", loop="reconcile")
                actions = {}
            for pubkey, do in actions.items():
                if pubkey not in busy:
                    busy.add(pubkey)
                    nursery.start_soon(act, pubkey, do)
            await app.wakes.reconcile.wait(5)


async def _announce(app: App) -> None:
    # The pause gathers changes that come together into one announcement.
    await _every("announce", 0.5, lambda: _announce_once(app))


async def _announce_once(app: App) -> None:
    await app.wakes.announce.wait(30)
    await queue_container_events(app.ctx)


async def _announce_instance(app: App) -> None:
    """Hourly, before our attestation ends, and soon after the number of free units changed."""
    due, held = -float("inf"), -1
    urls = (*app.ctx.places.relay_urls, *app.ctx.places.announce_urls)
    announcement = Announcement(app.outlet)
    while True:
        try:
            now_held = await app.ctx.store.read(lambda tx: tx.held_units())
            if now_held != held or trio.current_time() >= due:
                events, again_in_s = await instance_events(app.ctx)
                due = trio.current_time() + again_in_s
                announcement.renew(events, urls)
                held = now_held
            await announcement.bring()
        except Exception:
            log.exception("loop failed", loop="announce instance")
        await trio.sleep(5)


async def _escrow(app: App) -> None:
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
        app.ctx.admission.closed_because = "our key is not safe in escrow" if unsafe else None
        await trio.sleep(EVERY_S if safe else RETRY_ESCROW_S)


async def _network(app: App) -> None:
    """Ports of what runs are open, all others closed; what a container sends and receives is counted."""
    network = app.network
    if network is None:
        return

    async def once() -> None:
        rows = await app.ctx.store.read(lambda tx: tx.containers([State.DEPLOYED]))
        addresses = await app.engine.addresses()
        try:
            await network.set([port for row in rows for port in row.ports], addresses)
        except (Refused, OSError, trio.TooSlowError) as error:
            log.warning("network.not_told", reason=str(error) or type(error).__name__)

    await _every("network", 1, once)


async def _drain(app: App) -> None:
    async with trio.open_nursery() as nursery:
        strangers = Strangers(app.outlet, nursery)
        outbox = Outbox(app.ctx.store, app.outlet, app.ctx.clock, strangers)

        async def once() -> None:
            if await outbox.drain() == 0:
                await app.wakes.outbox.wait(2)

        await _every("outbox", 0.05, once)


async def _prune(app: App) -> None:
    async def once() -> None:
        await app.seen.prune()
        await app.refused.prune()

    await _every("prune", 60, once)


LOOPS = (
    _invoices,
    _payments,
    _hints,
    _wallets,
    _meter,
    _upkeep,
    _sweep,
    _reconcile,
    _announce,
    _announce_instance,
    _escrow,
    _network,
    _drain,
    _prune,
)
