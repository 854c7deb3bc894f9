"""The composition root: builds every part, joins them, runs the loops. Read this to see the whole.

embedded relay ─┐                        ┌─ ROUTES handlers ─ store, wallet, registry
relay pool ─────┴─ inbox ─ door ─ dispatch                    │ outbox ─ relays
wallet hints ── settle ┐                                      │
clock ── charge, upkeep, sweep ─ store ─ reconcile ─ engine ──┘ announce ─ relays
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
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
from bot.inbox import Inbox
from bot.intake import feed, run_pump, run_requests, subscribe
from bot.loops import LOOPS, look_at_engine
from bot.outlet import Outlet
from bot.parts import App, Wakes
from bot.relay.pool import RelayPool
from bot.relay.server import RelayServer
from handlers.context import Context, Places
from nips.event import Event
from nips.keys import SecretKey

log = structlog.get_logger()
VERSION = "0.1.0"


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
            app.relay.listen(feed(app, send))
            relays = app.config.relays
            await nursery.start(app.relay.serve, relays.embedded_host, relays.embedded_port)
        nursery.start_soon(app.pool.run)
        subscribe(app)
        nursery.start_soon(app.wallet.run)
        nursery.start_soon(run_pump, app, send)
        with trio.move_on_after(60) as slow:
            await app.wallet.wait_ready()
        if slow.cancelled_caught:
            log.warning("the wallet does not answer yet; going on without it")
            nursery.start_soon(app.wallet.wait_ready)
        if app.config.http.port:
            await nursery.start(
                bot.http.server.serve, app.ctx, app.config.http.host, app.config.http.port
            )
        await look_at_engine(app)
        for loop in LOOPS:
            nursery.start_soon(loop, app)
        nursery.start_soon(run_requests, app, receive)
        log.info("ready", pubkey=app.ctx.key.pubkey, relays=app.ctx.places.relay_urls)
        task_status.started()
