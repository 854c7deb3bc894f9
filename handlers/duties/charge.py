"""Metering: every tick, charge what ran, warn when little is left, pause what cannot pay."""

from collections.abc import Mapping
from dataclasses import replace

from handlers.context import Context
from handlers.domain.ledger import charge, container_account
from handlers.domain.lifecycle import Happening, State
from handlers.domain.meter import Account, Due, Ended, Next, Rhythm, Run, due
from handlers.domain.trial import Trial, stayed_up
from handlers.ports import Tx
from handlers.records import Container
from handlers.transitions import advance, tell_admin


async def tick(ctx: Context) -> None:
    """One look at every container that runs; writes only what is due."""
    runs = ctx.engine.runs()
    await _charge_ended(ctx)
    if not runs:
        return
    now_ms = ctx.clock.boot_ms()
    if await ctx.store.read(lambda tx: bool(_all_due(tx, ctx, runs, now_ms))):
        paused = await ctx.store.write(lambda tx: _charge_all(tx, ctx, runs, now_ms))
        ctx.wake.outbox()
        if paused:
            ctx.wake.reconcile()
            ctx.wake.announce()


async def _charge_ended(ctx: Context) -> None:
    """The last stretch of runs that are over: else a container that dies before each charge runs free.

    Each is forgotten only once it is written: what the store refuses now is charged at the next tick.
    """
    for ended in ctx.engine.ended():
        await ctx.store.write(lambda tx, e=ended: _charge_tail(tx, ctx, e))  # type: ignore[misc]
        ctx.engine.forget_ended(ended)


def _charge_tail(tx: Tx, ctx: Context, ended: Ended) -> None:
    row = tx.container(ended.pubkey)
    if row is not None:
        _charge_up_to(tx, ctx, row, ended.run, ended.last_seen_ms)


def charge_now(tx: Tx, ctx: Context, row: Container, run: Run | None) -> None:
    """Charge a container up to this moment, before it is stopped on purpose or money is taken out."""
    if run is None or row.state is not State.DEPLOYED:
        return
    _charge_up_to(tx, ctx, row, run, ctx.clock.boot_ms())


def _charge_up_to(tx: Tx, ctx: Context, row: Container, run: Run, now_ms: int) -> None:
    every = replace(ctx.policy.rhythm, charge_every_ms=0)
    found = due(_account(tx, row), run, now_ms, every)
    if found is not None:
        _write(tx, ctx, row, found, None)


def _charge_all(tx: Tx, ctx: Context, runs: Mapping[str, Run], now_ms: int) -> int:
    paused = 0
    for row, found in _all_due(tx, ctx, runs, now_ms):
        _write(tx, ctx, row, found, now_ms - runs[row.pubkey].started_ms)
        paused += found.then is Next.PAUSE
    return paused


def _all_due(
    tx: Tx, ctx: Context, runs: Mapping[str, Run], now_ms: int
) -> "list[tuple[Container, Due]]":
    pairs = []
    for row in tx.containers([State.DEPLOYED]):
        run = runs.get(row.pubkey)
        found = due(_account(tx, row), run, now_ms, ctx.policy.rhythm) if run is not None else None
        if found is not None:
            pairs.append((row, found))
    return pairs


def _account(tx: Tx, row: Container) -> Account:
    return Account(
        units=row.units,
        tariff=row.tariff,
        balance_msat=tx.balance(container_account(row.pubkey)),
        meter=tx.meter(row.pubkey),
        low_noticed=row.low_noticed,
        charged_from_start=row.trial.is_charged_from_start,
    )


def _write(tx: Tx, ctx: Context, row: Container, found: Due, alive_ms: int | None) -> None:
    """``alive_ms``: for how long the run that is charged has been up now; None when it is over."""
    now = ctx.clock.now()
    meter = found.meter
    entry = charge(row.pubkey, meter.boot_id, meter.start_tick, found.from_ms, found.amount_msat)
    if found.amount_msat and not tx.post(entry, now):
        return
    tx.save_meter(row.pubkey, meter)
    if row.state is not State.DEPLOYED:
        return
    warn = found.then is not Next.GO_ON and not row.low_noticed
    trial = _after(row.trial, alive_ms, ctx.policy.rhythm)
    row = replace(row, trial=trial, low_noticed=row.low_noticed or warn)
    tx.save_container(row)
    if found.then is Next.WARN:
        tell_admin(tx, ctx, row, "has little balance left; top it up to keep it running.", now)
    elif found.then is Next.PAUSE:
        advance(tx, ctx, row, Happening.BALANCE_OUT, now)


def _after(trial: Trial, alive_ms: int | None, rhythm: Rhythm) -> Trial:
    # Only a run that is alive proves anything about the one that the store expects.
    if alive_ms is None or alive_ms < rhythm.stays_up_ms:
        return trial
    return stayed_up(trial, long=alive_ms >= rhythm.steady_ms)
