"""Metering: at every tick charge what is due, warn when little is left, pause what cannot pay."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from handlers.alarms import Alarm
from handlers.context import Context, Facts
from handlers.domain.ledger import charge, container_account
from handlers.domain.lifecycle import Happening, State
from handlers.domain.meter import Account, Due, Ended, Next, Rhythm, Run, due, look_again_ms
from handlers.domain.trial import Trial, stayed_up
from handlers.records import Container
from handlers.tables import Tx
from handlers.transitions import advance, tell_admin

NextLooks = Mapping[str, int]


async def tick(ctx: Context) -> None:
    """One look at what runs; the store is asked only for what is due."""
    runs = ctx.engine.runs()
    _raise_alarm(ctx)
    await _charge_ended(ctx)
    due_now = ctx.dues.among(runs, ctx.clock.boot_ms())
    if not due_now:
        return
    next_looks, paused = await ctx.store.write(_charge_all, ctx.facts(*due_now), due_now)
    for pubkey, at_ms in next_looks.items():
        ctx.dues.set(pubkey, runs[pubkey], at_ms)
    ctx.nudge.outbox()
    if paused:
        ctx.nudge.reconcile()
        ctx.nudge.announce()


def _raise_alarm(ctx: Context) -> None:
    """What runs and cannot be metered runs free: it is told, and nothing more of it is let in."""
    unmetered = sorted(ctx.engine.unmetered())
    reason = (
        f"no process is found of {len(unmetered)} that run, {unmetered[0]} first"
        if unmetered
        else None
    )
    ctx.alarms.set(Alarm.METER, reason)


async def _charge_ended(ctx: Context) -> None:
    """The last stretch of runs that are over: else a container that dies before each charge runs free.

    Each is forgotten only once it is written: what the store refuses now is charged at the next tick.
    """
    for ended in ctx.engine.ended():
        await ctx.store.write(_charge_tail, ctx.facts(), ended)
        ctx.engine.forget_ended(ended)
        # It is to be started again, or the store is to know why not.
        ctx.nudge.reconcile()


def _charge_tail(tx: Tx, facts: Facts, ended: Ended) -> None:
    row = tx.containers.find(ended.pubkey)
    if row is not None:
        _charge_up_to(tx, facts, row, ended.run, ended.last_seen_ms)


def charge_now(tx: Tx, facts: Facts, row: Container) -> None:
    """Charge a container up to this moment, before it is stopped on purpose or money is taken out."""
    run = facts.runs.get(row.pubkey)
    if run is not None and row.state is State.DEPLOYED:
        _charge_up_to(tx, facts, row, run, facts.boot_ms)


def _charge_up_to(tx: Tx, facts: Facts, row: Container, run: Run, now_ms: int) -> None:
    every = replace(facts.policy.rhythm, charge_every_ms=0)
    found = due(_account(tx, row), run, now_ms, every)
    if found is not None:
        _write(tx, facts, row, found, None)


def _charge_all(tx: Tx, facts: Facts, pubkeys: Sequence[str]) -> tuple[NextLooks, int]:
    """When to look at each again, and how many had to be paused."""
    next_looks, paused = {}, 0
    for pubkey in pubkeys:
        row, run = tx.containers.find(pubkey), facts.runs.get(pubkey)
        if row is None or run is None or row.state is not State.DEPLOYED:
            continue
        found = due(_account(tx, row), run, facts.boot_ms, facts.policy.rhythm)
        if found is not None:
            _write(tx, facts, row, found, facts.boot_ms - run.started_ms)
            paused += found.then is Next.PAUSE
        account = _account(tx, tx.containers.find(pubkey) or row)
        next_looks[pubkey] = look_again_ms(account, run, facts.policy.rhythm)
    return next_looks, paused


def _account(tx: Tx, row: Container) -> Account:
    return Account(
        units=row.units,
        tariff=row.tariff,
        balance_msat=tx.ledger.balance(container_account(row.pubkey)),
        meter=tx.meters.find(row.pubkey),
        low_noticed=row.low_noticed,
        charged_from_start=row.trial.is_charged_from_start,
    )


def _write(tx: Tx, facts: Facts, row: Container, found: Due, alive_ms: int | None) -> None:
    """``alive_ms``: for how long the run that is charged has been up now; None when it is over."""
    meter = found.meter
    entry = charge(row.pubkey, meter.boot_id, meter.start_tick, found.from_ms, found.amount_msat)
    if found.amount_msat and not tx.ledger.post(entry, facts.now):
        return
    tx.meters.save(row.pubkey, meter)
    if row.state is not State.DEPLOYED:
        return
    warn = found.then is not Next.GO_ON and not row.low_noticed
    trial = _after(row.trial, alive_ms, facts.policy.rhythm)
    row = replace(row, trial=trial, low_noticed=row.low_noticed or warn)
    tx.containers.save(row)
    if found.then is Next.WARN:
        tell_admin(tx, facts, row, "has little balance left; top it up to keep it running.")
    elif found.then is Next.PAUSE:
        # Whoever took his money out does not keep a place that others would pay for.
        taken = Happening.BALANCE_TAKEN if row.taken_out else Happening.BALANCE_OUT
        advance(tx, facts, row, taken)


def _after(trial: Trial, alive_ms: int | None, rhythm: Rhythm) -> Trial:
    # Only a run that is alive proves anything about the one that the store expects.
    if alive_ms is None or alive_ms < rhythm.stays_up_ms:
        return trial
    return stayed_up(trial, long=alive_ms >= rhythm.steady_ms)
