"""The composition root: builds every part, joins them, runs the loops. Read this to see the whole.

module, escrow ─ wake ─ identity, proof
embedded relay ─┐                        ┌─ ROUTES handlers ─ store, wallet, registry
relay pool ─────┴─ inbox ─ door ─ dispatch                    │ outbox ─ relays
wallet hints ── settle ┐                                      │
clock ── charge, upkeep, sweep ─ store ─ reconcile ─ engine ──┘ announce ─ relays
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import structlog
import trio

import bot.server.http.server
from bot.adapters.disks.copies import DiskCopies
from bot.adapters.docker_engine import HOST_NAME, DockerConfig, DockerEngine
from bot.adapters.enclave_network import EnclaveNetwork
from bot.adapters.engine.room import make_room, shortages
from bot.adapters.image_store import ImageStore, StoreConfig
from bot.adapters.nwc_client import Whereabouts, known
from bot.adapters.nwc_wallet import NwcWallet
from bot.adapters.oci_registry import OciRegistry
from bot.adapters.relay_events import RelayEvents
from bot.adapters.seen_store import SeenStore
from bot.adapters.store.sqlite import SqliteStore
from bot.boot.identity import only_one
from bot.boot.put_back import BOOKS, put_back
from bot.boot.steps import Step
from bot.boot.unlock import Halted
from bot.boot.wake import Awake, folders_of, parent_of, tell_parent, wake
from bot.builtins import load_builtins
from bot.clock import SystemClock, boot_id
from bot.config import Config, images_folder
from bot.parent.wire import ROTATE, SHUTDOWN
from bot.relay.gate import raise_descriptor_limit
from bot.relay.pool import RelayPool
from bot.relay.server import RelayServer
from bot.server.checkpoints import Checkpointer
from bot.server.content import EngineDisks
from bot.server.doors.container import ContainerDoor
from bot.server.inbox import Inbox
from bot.server.intake import catch_up, feed, run_pump, run_requests, subscribe
from bot.server.loops import TrioTasks, look_at_engine, loops, run_escrow, run_hints, run_loop
from bot.server.outlet import Outlet
from bot.server.own_wallet import own_wallet
from bot.server.parts import App, TrioNudges
from bot.server.status import Status, run_status
from handlers.alarms import Alarm, Alarms
from handlers.context import Builtin, Context, OnThisDisk, Policy, Presence, own_units
from handlers.domain.lifecycle import State
from handlers.duties.builtins import keep_builtins
from nips.event import VerifiedEvent
from nips.keys import SecretKey
from nips.relay_url import normal_url

log = structlog.get_logger()
VERSION = "0.1.0-dev"
# On a file system that images have for themselves.
OWN_DISK_FREE_BYTES = 8 << 20
WALLET_S = 60
# Each may be kept for two days.
MOST_REFUSED_IDS = 20_000


@asynccontextmanager
async def start(config: Config, *, forget_state: bool = False) -> AsyncIterator[App]:
    """Everything up to the point where requests could be answered. Raises what `wake` raises.

    The embedded relay comes first: key escrow may be reached through it.
    """
    state, clock, status = config.server.state_dir, SystemClock(), Status()
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with only_one(state):
        raise_descriptor_limit()
        relay, own_urls = _embedded_relay(config, clock)
        trusted = (*own_urls, *config.relays.urls, *config.escrow.relays)
        # Two, since each goes to few relays at once: what strangers have us look up must not hold up escrow.
        for_escrow, for_strangers = (RelayEvents(trusted, relay, own_urls) for _ in range(2))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_status, config, status)
            if relay is not None:
                relays = config.relays
                await relay.serve_for("configured", relays.served_pubkeys())
                if config.wallet_uri is not None:
                    await relay.serve_for("wallet", [config.wallet_uri.wallet_pubkey])
                await nursery.start(relay.serve, relays.embedded_host, relays.embedded_port)
            awake = await _wake(
                config, for_escrow, own_urls, clock, status, forget_state=forget_state
            )
            status.steps.reach(Step.RESTORE)
            checkpointer = await _restored(config, awake, clock, status)
            status.steps.reach(Step.SERVER)
            if relay is not None:
                relay.belongs_to(awake.key.pubkey)
                await relay.serve_for("instance", [awake.key.pubkey])
            async with (
                trio.open_nursery() as tasks,
                _build(config, clock, awake, for_strangers, relay, own_urls, tasks, status) as app,
            ):
                yield app
                tasks.cancel_scope.cancel()
            if checkpointer is not None:
                # All is closed and nobody writes any more; escrow is still to be reached.
                anchored = await checkpointer.last()
                log.info("the last checkpoint", anchored=anchored)
            nursery.cancel_scope.cancel()


async def _wake(
    config: Config,
    events: RelayEvents,
    own_urls: tuple[str, ...],
    clock: SystemClock,
    status: Status,
    *,
    forget_state: bool,
) -> Awake:
    try:
        return await wake(config, events, own_urls, clock, status.steps, forget_state=forget_state)
    except Halted as halted:
        status.steps.halt(str(halted))
        await tell_parent(config, f"halted: {halted}")
        raise


async def _restored(
    config: Config, awake: Awake, clock: SystemClock, status: Status
) -> Checkpointer | None:
    """Files back from the last checkpoint, and whoever makes the next ones; None where the disk is our own."""
    if awake.unlocked is None or not config.parent.address:
        return None
    await put_back(awake.unlocked, folders_of(config), status.restore)
    tell = partial(tell_parent, config)
    every_s = config.parent.checkpoint_every_s
    status.checkpointer = Checkpointer(
        awake.unlocked, config.server.state_dir, clock, tell, every_s
    )
    return status.checkpointer


@asynccontextmanager
async def _build(
    config: Config,
    clock: SystemClock,
    awake: Awake,
    events: RelayEvents,
    relay: RelayServer | None,
    own_urls: tuple[str, ...],
    nursery: trio.Nursery,
    status: Status,
) -> AsyncIterator[App]:
    """Open everything that must be closed again."""
    state, key, builtins = (
        config.server.state_dir,
        awake.key,
        load_builtins(config.server.builtins),
    )
    nudges, this_boot = TrioNudges(), boot_id()
    status.alarms, status.network = Alarms(_log_alarm), _network(config)
    store = SqliteStore(state / BOOKS)
    seen = SeenStore(state / "seen.sqlite", clock)
    refused = SeenStore(state / "refused.sqlite", clock, MOST_REFUSED_IDS)
    registry = OciRegistry(config.registry)
    images = ImageStore(_store_config(config, key), registry, clock)
    engine = DockerEngine(_docker_config(config, key), images, this_boot, clock)
    pool = RelayPool(clock, auth_key=key)
    own = own_wallet(config, builtins, awake, relay)
    where = own.where if own is not None else _known_wallet(config)
    wallet = NwcWallet(where, clock, any_payee=config.wallet.any_payee)
    presence = Presence(
        name=config.server.name,
        about=config.server.about,
        # Measured with the image, where there is one.
        repo=awake.repo or config.server.repo,
        version=VERSION,
        relay_urls=tuple(dict.fromkeys(map(normal_url, [*own_urls, *config.relays.urls]))),
        public_url=config.http.public_url,
        app_host=config.engine.app_host,
        announce_urls=awake.announce_urls,
        container_endpoint=_container_endpoint(config),
    )
    ctx = Context(
        key=key,
        store=store,
        wallet=wallet,
        engine=engine,
        registry=registry,
        events=events,
        clock=clock,
        nudge=nudges,
        tasks=TrioTasks(nursery),
        policy=_policy_beside(config.policy, builtins),
        presence=presence,
        proof=awake.proof,
        durability=status.checkpointer or OnThisDisk(),
        alarms=status.alarms,
        builtins=builtins,
        own_wallet=config.wallet.builtin,
    )
    inbox = Inbox(key.pubkey, seen, refused, config.inbox)
    outlet = Outlet(pool, relay, own_urls)
    try:
        yield App(
            config,
            ctx,
            nudges,
            wallet,
            engine,
            pool,
            relay,
            outlet,
            inbox,
            seen,
            refused,
            awake.keeper,
            status.checkpointer,
            status.network,
            status,
            own,
        )
    finally:
        with trio.CancelScope(shield=True):
            await registry.aclose()
        engine.close()
        seen.close()
        refused.close()
        store.close()


def _known_wallet(config: Config) -> Whereabouts:
    assert config.wallet_uri is not None  # noqa: S101 - as read, it has a URI or a builtin
    return known(config.wallet_uri)


def _log_alarm(alarm: Alarm, reason: str | None) -> None:
    if reason is None:
        log.info("alarm is over", alarm=alarm.value)
    else:
        log.error("alarm", alarm=alarm.value, reason=reason)


def _policy_beside(policy: Policy, builtins: Sequence[Builtin]) -> Policy:
    """What is for sale stays for sale: the instance's own containers have units beside it."""
    units = policy.capacity.total_units + own_units(builtins)
    return replace(policy, capacity=replace(policy.capacity, total_units=units))


def _network(config: Config) -> EnclaveNetwork | None:
    """What listens on the loopback interface is nobody's business outside."""
    control = config.network.control
    served = (
        (config.http.host, config.http.port),
        (config.relays.embedded_host, config.relays.embedded_port),
    )
    own = [port for host, port in served if port and not _is_loopback(host)]
    return EnclaveNetwork(control, own) if control is not None else None


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _container_endpoint(config: Config) -> str | None:
    port = config.containers.port
    return f"ws://{HOST_NAME}:{port}" if port else None


def _docker_config(config: Config, key: SecretKey) -> DockerConfig:
    engine = config.engine
    return DockerConfig(
        engine.socket,
        key.pubkey,
        engine.cgroup_parent,
        engine.publish_host,
        engine.masquerade,
        config.server.state_dir / "logs",
        engine.disks,
    )


def _store_config(config: Config, key: SecretKey) -> StoreConfig:
    folder, store_bytes = images_folder(config.server.state_dir), config.registry.store_bytes
    if (boot := config.boot) is None:
        return StoreConfig(folder, config.engine.socket, key.pubkey, store_bytes)
    # Nobody else writes there.
    return StoreConfig(
        folder,
        config.engine.socket,
        key.pubkey,
        min(store_bytes, boot.layers_bytes),
        free_bytes=OWN_DISK_FREE_BYTES,
    )


def _embedded_relay(
    config: Config, clock: SystemClock
) -> tuple[RelayServer | None, tuple[str, ...]]:
    relays = config.relays
    if relays.embedded_port == 0:
        return None, ()
    url = relays.embedded_url or f"ws://{relays.embedded_host}:{relays.embedded_port}"
    server = RelayServer(
        clock,
        name=config.server.name,
        pubkey=None,
        urls=[url],
        limits=relays.embedded_limits,
        path=config.server.state_dir / "relay.sqlite",
        is_open=relays.embedded_open,
    )
    if relays.embedded_open:
        log.warning("DEVELOPMENT ONLY: the embedded relay keeps everybody's events")
    return server, (url,)


def _see_to_room(config: Config) -> None:
    """In an enclave the machine is ours; elsewhere its operator is told."""
    units, size, nsm = (
        config.policy.capacity.total_units,
        config.policy.unit_size,
        config.attestation.nsm,
    )
    if nsm is not None and nsm.is_char_device():
        make_room(units, size)
    if short := shortages(units, size):
        log.warning(
            "one tenant can use up what the machine has only once",
            sysctls=[str(one) for one in short],
        )


async def _copy_disks_too(app: App, checkpointer: Checkpointer) -> None:
    if app.engine.disks is None:
        return
    copies = DiskCopies(app.engine.disks, app.config.engine.cgroup_parent)
    disks = EngineDisks(app.engine, copies)
    await disks.thaw()
    own = app.own_wallet
    checkpointer.content.with_disks(disks, partial(own.holding, app.ctx) if own else None)


async def _tidy_disks(app: App) -> None:
    """Of containers that ended while we were away."""
    rows = await app.ctx.store.read(lambda tx: tx.containers.list_in(tuple(State)))
    left = [row.pubkey for row in rows if row.state is not State.STOPPED]
    await app.engine.drop_disks_but(left)


async def run(app: App, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Run until cancelled. Reports readiness when requests are answered."""
    await app.engine.check()
    _see_to_room(app.config)
    send, receive = trio.open_memory_channel[VerifiedEvent](4_096)
    async with trio.open_nursery() as nursery:
        if app.relay is not None:
            listener = feed(app, send)
            app.relay.listen(listener)
            await catch_up(app, listener)
        nursery.start_soon(app.engine.watch)
        nursery.start_soon(app.pool.run)
        subscribe(app)
        nursery.start_soon(app.wallet.run)
        nursery.start_soon(run_pump, app, send)
        await _wait_for_wallet(app, nursery)
        if app.config.http.port:
            await nursery.start(
                bot.server.http.server.serve,
                app.ctx,
                app.config.http.host,
                app.config.http.port,
                app.config.http.callbacks_per_minute,
            )
        await keep_builtins(app.ctx)
        await _tidy_disks(app)
        await look_at_engine(app)
        if app.config.containers.port:
            place = app.config.containers
            await nursery.start(ContainerDoor(app.ctx).serve, place.host, place.port)
        for loop in loops(app, nursery):
            nursery.start_soon(run_loop, app, loop)
        nursery.start_soon(run_hints, app)
        nursery.start_soon(run_escrow, app)
        app.status.steps.reach(Step.CHECKPOINTS)
        if app.checkpointer is not None:
            await _copy_disks_too(app, app.checkpointer)
            nursery.start_soon(app.checkpointer.run)
        if (parent := parent_of(app.config)) is not None:
            nursery.start_soon(parent.run_events, _obeying(app, nursery.cancel_scope))
        nursery.start_soon(run_requests, app, receive)
        app.status.steps.reach(Step.READY)
        log.info("ready", pubkey=app.ctx.key.pubkey, relays=app.ctx.presence.relay_urls)
        task_status.started()


async def _wait_for_wallet(app: App, nursery: trio.Nursery) -> None:
    """Our own one is started by us, and comes later."""
    with trio.move_on_after(0 if app.own_wallet is not None else WALLET_S) as slow:
        await app.wallet.wait_ready()
    if slow.cancelled_caught:
        if app.own_wallet is None:
            log.warning("the wallet does not answer yet; going on without it")
        nursery.start_soon(app.wallet.wait_ready)


def _obeying(app: App, scope: trio.CancelScope) -> Callable[[str], None]:
    def obey(event: str) -> None:
        # Its word ends the service, not the enclave's life: the last checkpoint follows. Where there is a boot, that obeys.
        if event == SHUTDOWN and app.config.boot is None:
            scope.cancel()
        if event == ROTATE and app.checkpointer is not None:
            app.checkpointer.rotate()

    return obey
