"""The composition root: builds every part, joins them, runs the loops. Read this to see the whole.

embedded relay ─┐                        ┌─ ROUTES handlers ─ store, wallet, registry
relay pool ─────┴─ inbox ─ door ─ dispatch                    │ outbox ─ relays
wallet hints ── settle ┐                                      │
clock ── charge, upkeep, sweep ─ store ─ reconcile ─ engine ──┘ announce ─ relays
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

import bot.http.server
from bot.adapters.docker_engine import DockerConfig, DockerEngine
from bot.adapters.nwc_wallet import NwcWallet
from bot.adapters.oci_registry import OciRegistry
from bot.adapters.seen_store import SeenStore
from bot.adapters.sqlite_store import SqliteStore
from bot.clock import SystemClock, boot_id
from bot.config import Config
from bot.doors import mention, rpc
from bot.inbox import Inbox, Verdict
from bot.outbox import drain
from bot.outlet import Outlet
from bot.relay.pool import RelayPool
from bot.relay.server import RelayServer
from handlers.announce import instance_events, queue_container_events
from handlers.charge import tick
from handlers.context import Context, Places
from handlers.domain.plan import Do
from handlers.outgoing import due_payments, follow
from handlers.reconcile import carry_out, survey
from handlers.settle import due_invoices, look_at, look_at_wallet_of
from handlers.sweep import sweep
from handlers.upkeep import upkeep
from nips import kinds
from nips.event import Event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.mention import is_mention

log = structlog.get_logger()
VERSION = "0.1.0"
MAX_REQUESTS_AT_ONCE = 256
HOURLY_S = 3_600
RETRY_S = 2
LOOKS_AT_ONCE = 8
Waiting = trio.MemoryReceiveChannel[tuple[Event, bool]]


class Nudge:
    """Wakes a loop early; many nudges before it runs are one."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def __call__(self) -> None:
        self._event.set()

    async def wait(self, at_most_s: float) -> bool:
        """Whether a nudge came before the time was over."""
        with trio.move_on_after(at_most_s):
            await self._event.wait()
        nudged, self._event = self._event.is_set(), trio.Event()
        return nudged


class Wakes:
    """`handlers.ports.Wake`, one nudge per loop."""

    def __init__(self) -> None:
        self.reconcile, self.announce, self.outbox = Nudge(), Nudge(), Nudge()


@dataclass(frozen=True)
class App:
    """A server that is built but not running. `run` runs it."""

    config: Config
    ctx: Context
    wakes: Wakes
    wallet: NwcWallet
    engine: DockerEngine
    pool: RelayPool
    relay: RelayServer | None
    outlet: Outlet
    inbox: Inbox
    seen: SeenStore


@asynccontextmanager
async def build(config: Config) -> AsyncIterator[App]:
    """Open everything that must be closed again."""
    state = config.server.state_dir
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = load_key(state / "instance.key")
    clock, wakes, this_boot = SystemClock(), Wakes(), boot_id()
    store = SqliteStore(state / "enclaved.sqlite")
    seen = SeenStore(state / "seen.sqlite")
    engine = DockerEngine(_docker_config(config, key), this_boot, clock)
    registry = OciRegistry(config.registry)
    relay, own_urls = _embedded_relay(config, key, clock)
    pool = RelayPool(clock, auth_key=key)
    wallet = NwcWallet(config.wallet_uri, clock, any_payee=config.wallet.any_payee)
    places = Places(
        name=config.server.name,
        about=config.server.about,
        repo=config.server.repo,
        version=VERSION,
        relay_urls=tuple(dict.fromkeys([*own_urls, *config.relays.urls])),
        public_url=config.http.public_url,
        app_host=config.engine.app_host,
    )
    ctx = Context(key, store, wallet, engine, registry, clock, wakes, config.policy, places)
    inbox = Inbox(key.pubkey, seen, config.inbox)
    outlet = Outlet(pool, relay, own_urls)
    try:
        yield App(config, ctx, wakes, wallet, engine, pool, relay, outlet, inbox, seen)
    finally:
        with trio.CancelScope(shield=True):
            await registry.aclose()
        engine.close()
        seen.close()
        store.close()


def load_key(path: Path) -> SecretKey:
    """The instance's key; made on the first start, readable only by its owner."""
    with suppress(FileNotFoundError):
        return SecretKey.parse(path.read_text().strip())
    key = SecretKey.generate()
    # Written aside and renamed: a crash must not leave half a key behind.
    aside = path.with_suffix(".new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key.reveal_secret().hex())
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    return key


def _docker_config(config: Config, key: SecretKey) -> DockerConfig:
    engine = config.engine
    return DockerConfig(
        engine.socket,
        key.pubkey,
        engine.cgroup_parent,
        engine.publish_host,
        config.registry.credentials,
    )


def _embedded_relay(
    config: Config, key: SecretKey, clock: SystemClock
) -> tuple[RelayServer | None, tuple[str, ...]]:
    relays = config.relays
    if relays.embedded_port == 0:
        return None, ()
    url = relays.embedded_url or f"ws://{relays.embedded_host}:{relays.embedded_port}"
    server = RelayServer(
        clock,
        name=config.server.name,
        pubkey=key.pubkey,
        urls=[url],
        limits=relays.embedded_limits,
        path=config.server.state_dir / "relay.sqlite",
    )
    return server, (url,)


async def run(app: App, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Run until cancelled. Reports readiness when requests are answered."""
    await app.engine.check()
    send, receive = trio.open_memory_channel[tuple[Event, bool]](4_096)
    async with trio.open_nursery() as nursery:
        if app.relay is not None:
            app.relay.listen(_feed(app, send))
            relays = app.config.relays
            await nursery.start(app.relay.serve, relays.embedded_host, relays.embedded_port)
        nursery.start_soon(app.pool.run)
        _subscribe(app)
        nursery.start_soon(app.wallet.run)
        nursery.start_soon(_pump_pool, app, send)
        with trio.move_on_after(60) as slow:
            await app.wallet.wait_ready()
        if slow.cancelled_caught:
            log.warning("the wallet does not answer yet; going on without it")
            nursery.start_soon(app.wallet.wait_ready)
        if app.config.http.port:
            await nursery.start(
                bot.http.server.serve, app.ctx, app.config.http.host, app.config.http.port
            )
        await _look_at_engine(app)
        for loop in (
            _invoices,
            _payments,
            _wallets,
            _sweep,
            _hints,
            _meter,
            _upkeep,
            _reconcile,
            _announce,
            _announce_instance,
            _drain,
            _prune,
        ):
            nursery.start_soon(loop, app)
        nursery.start_soon(_requests, app, receive)
        log.info("ready", pubkey=app.ctx.key.pubkey, relays=app.ctx.places.relay_urls)
        task_status.started()


# -- requests ---------------------------------------------------------------------------------------


def _subscribe(app: App) -> None:
    us = {"p": frozenset({app.ctx.key.pubkey})}
    now, inbox = app.ctx.clock.now(), app.config.inbox
    app.pool.subscribe(
        "rpc", [Filter(kinds=frozenset({kinds.RPC}), tags=us, since=now - inbox.rpc_window_s)]
    )
    app.pool.subscribe(
        "notes", [Filter(kinds=frozenset({kinds.NOTE}), tags=us, since=now - inbox.note_window_s)]
    )
    for url in app.config.relays.urls:
        app.pool.add(url)


def _feed(app: App, send: trio.MemorySendChannel[tuple[Event, bool]]) -> Callable[[Event], None]:
    def listener(event: Event) -> None:
        if _concerns_us(app, event):
            try:
                send.send_nowait((event, True))
            except trio.WouldBlock:
                log.warning("request refused: the queue is full", event_id=event.id)

    return listener


def _concerns_us(app: App, event: Event) -> bool:
    pubkey = app.ctx.key.pubkey
    if event.kind == kinds.RPC:
        return pubkey in event.tag_values("p")
    return event.kind == kinds.NOTE and is_mention(event, pubkey)


async def _pump_pool(app: App, send: trio.MemorySendChannel[tuple[Event, bool]]) -> None:
    while True:
        heard = await app.pool.receive()
        await send.send((heard.event, False))


async def _requests(app: App, receive: Waiting) -> None:
    limiter = trio.CapacityLimiter(MAX_REQUESTS_AT_ONCE)
    async with trio.open_nursery() as nursery:
        async for first in receive:
            # All that wait are taken at once: they share turns of the loop, commits and writes.
            for event, verified in [first, *_waiting_now(receive)]:
                # Taken here, given back by the task: when all are busy, the queue fills, then relays wait.
                place = object()
                try:
                    limiter.acquire_on_behalf_of_nowait(place)
                except trio.WouldBlock:
                    await limiter.acquire_on_behalf_of(place)
                nursery.start_soon(_request, app, event, verified, limiter, place)


def _waiting_now(receive: Waiting) -> list[tuple[Event, bool]]:
    waiting: list[tuple[Event, bool]] = []
    try:
        while len(waiting) < MAX_REQUESTS_AT_ONCE:
            waiting.append(receive.receive_nowait())
    except (trio.WouldBlock, trio.EndOfChannel):
        pass
    return waiting


async def _request(
    app: App,
    event: Event,
    verified: bool,
    limiter: trio.CapacityLimiter,
    place: object,
) -> None:
    try:
        await _answer(app, event, verified=verified)
    except Exception:
        log.exception("request failed", event_id=event.id)
    finally:
        limiter.release_on_behalf_of(place)


async def _answer(app: App, event: Event, *, verified: bool) -> None:
    # Notes that hold no command are nobody's business; they must not use up anybody's rate.
    if event.kind == kinds.NOTE and not mention.is_command(app.ctx, event):
        return
    verdict = await app.inbox.admit(event, app.ctx.clock.now(), verified=verified)
    if verdict is Verdict.IGNORE:
        return
    door = mention if event.kind == kinds.NOTE else rpc
    reply = await door.answer(app.ctx, event, rate_limited=verdict is Verdict.RATE_LIMITED)
    if reply is not None:
        if event.kind == kinds.NOTE:
            app.inbox.count_reply(event)
        await app.outlet.reply(reply)


# -- loops ------------------------------------------------------------------------------------------


async def _every(what: str, seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    """Do it again and again; a surprise is logged once and the loop goes on."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("loop failed", loop=what)
        await trio.sleep(seconds)


async def _look_at_engine(app: App) -> None:
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
            if hint.payment_hash is not None:
                await look_at(app.ctx, hint.payment_hash)
            elif hint.container is not None:
                await look_at_wallet_of(app.ctx, hint.container)
        except Exception:
            log.exception("loop failed", loop="hints")


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
    """Hourly, and soon after the number of free units changed."""
    told, held = -float("inf"), -1
    while True:
        try:
            now_held = await app.ctx.store.read(lambda tx: tx.held_units())
            if now_held != held or trio.current_time() - told >= HOURLY_S:
                for event in await instance_events(app.ctx):
                    await app.outlet.deliver(event, app.ctx.places.relay_urls)
                told, held = trio.current_time(), now_held
        except Exception:
            log.exception("loop failed", loop="announce instance")
        await trio.sleep(5)


async def _drain(app: App) -> None:
    async def once() -> None:
        if await drain(app.ctx.store, app.outlet, app.ctx.clock) == 0:
            await app.wakes.outbox.wait(2)

    await _every("outbox", 0.05, once)


async def _prune(app: App) -> None:
    await _every("prune", 60, lambda: app.seen.prune(app.ctx.clock.now()))
