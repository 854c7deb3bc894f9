"""Makes the engine match the store. The only code that starts or stops containers.

`survey` says what is to be done, `carry_out` does one of these things. Both are safe at any moment
and after any crash: the next survey sees what is really there.
"""

from dataclasses import replace
from functools import partial

from handlers.certify import container_token
from handlers.context import Context, Facts
from handlers.domain.lifecycle import Happening, State
from handlers.domain.limits import limits_for
from handlers.domain.plan import Do, Wanted, plan
from handlers.domain.trial import LONGEST_WAIT_S, TELL_AT, Progress, ended, started
from handlers.duties.own_wallet import wallet_environment
from handlers.ports import CannotStart, ContainerSpec
from handlers.records import Container
from handlers.tables import Tx
from handlers.transitions import advance, save_changed, tell_admin

# What is stopped is simply not wanted: the engine's part of it is a stray.
_WANTED = [state for state in State if state is not State.STOPPED]


async def reconcile(ctx: Context) -> None:
    """Survey, and begin what is to be done with each container that nothing is done with already."""
    for pubkey, do in (await survey(ctx)).items():
        await ctx.tasks.begin(do.value, pubkey, partial(_carry_out_until_done, ctx, pubkey, do))


async def _carry_out_until_done(ctx: Context, pubkey: str, do: Do) -> None:
    if await carry_out(ctx, pubkey, do):
        # What was put off because this container was busy may be due now.
        ctx.nudge.reconcile()


async def survey(ctx: Context) -> dict[str, Do]:
    """One action for each container where store and engine differ."""
    # The engine is asked first: a container that is added in between is simply not there yet, while
    # the other order could take a freshly started one for a stray.
    found = await ctx.engine.found()
    wanted = await ctx.store.read(_wanted, ctx.clock.now())
    return plan(wanted, found)


def _wanted(tx: Tx, now: int) -> dict[str, Wanted]:
    return {
        row.pubkey: Wanted(
            row.state, row.generation, row.trial.progress, may_start=_may_start(row, now)
        )
        for row in tx.containers.list_in(_WANTED)
    }


def _may_start(row: Container, now: int) -> bool:
    # A time in a distant future was set by a clock that has been corrected since.
    return not now < row.trial.retry_at <= now + LONGEST_WAIT_S


async def carry_out(ctx: Context, pubkey: str, do: Do) -> bool:
    """Do it, unless the store has changed its mind. False when it should be tried again a bit later."""
    match do:
        case Do.START:
            return await _start(ctx, pubkey)
        case Do.RECREATE:
            await ctx.engine.halt(pubkey, ctx.policy.restart_grace_s)
            await ctx.engine.remove(pubkey, keep_volumes=True)
            return await _start(ctx, pubkey)
        case Do.HALT:
            await ctx.engine.halt(pubkey, ctx.policy.pause_grace_s)
        case Do.REMOVE:
            await ctx.engine.remove(pubkey, keep_volumes=False)
        case Do.NOTE_END:
            await _note_end(ctx, pubkey)
    return True


async def _start(ctx: Context, pubkey: str) -> bool:
    row = await ctx.store.write(_owe_start, pubkey, ctx.clock.now())
    if row is None:
        return True
    problem = await ctx.engine.start(_spec(ctx, row))
    if problem is not None:
        return await _cannot_start(ctx, row, problem)
    if not await ctx.store.write(_started, pubkey, row.generation):
        # The admin stopped it, or its balance ran out, while it was being pulled.
        ctx.nudge.reconcile()
    ctx.nudge.announce()
    return True


def _owe_start(tx: Tx, pubkey: str, now: int) -> Container | None:
    """The row, if it must run; a start that was not owed before is owed from now on."""
    row = tx.containers.find(pubkey)
    if row is None or row.state is not State.DEPLOYED:
        return None
    if row.trial.progress is not Progress.DUE:
        row = replace(row, trial=replace(row.trial, progress=Progress.DUE), owed_since=now)
        tx.containers.save(row)
    return row


def _started(tx: Tx, pubkey: str, generation: int) -> bool:
    """Note that it was started; False when that is not wanted any more."""
    row = tx.containers.find(pubkey)
    if row is None or row.state is not State.DEPLOYED or row.generation != generation:
        return False
    save_changed(tx, replace(row, trial=started(row.trial)))
    return True


async def _cannot_start(ctx: Context, row: Container, problem: CannotStart) -> bool:
    """False when it is worth another try. Standing in line behind others does not count as being late."""
    owed_since = row.owed_since + problem.waited_s
    late = ctx.clock.now() - owed_since > ctx.policy.start_deadline_s
    if not problem.permanent and not late:
        await ctx.store.write(_owe_since, row, owed_since)
        return False
    await ctx.store.write(_give_up, ctx.facts(), row.pubkey, row.generation, problem.reason)
    ctx.nudge.announce()
    ctx.nudge.outbox()
    return True


def _give_up(tx: Tx, facts: Facts, pubkey: str, generation: int, reason: str) -> None:
    row = tx.containers.find(pubkey)
    # One that was restarted meanwhile is another try.
    if row is not None and row.generation == generation:
        advance(tx, facts, row, Happening.CANNOT_RUN, reason[:300])


def _owe_since(tx: Tx, tried: Container, owed_since: int) -> None:
    row = tx.containers.find(tried.pubkey)
    if row is not None and row.generation == tried.generation and row.owed_since != owed_since:
        tx.containers.save(replace(row, owed_since=owed_since))


async def _note_end(ctx: Context, pubkey: str) -> None:
    """It ended by itself: try again, later each time; give up when it is hopeless."""
    reason = await ctx.engine.exit_reason(pubkey)
    await ctx.store.write(_ended, ctx.facts(), pubkey, reason)
    ctx.nudge.announce()
    ctx.nudge.outbox()


def _ended(tx: Tx, facts: Facts, pubkey: str, reason: str) -> None:
    row = tx.containers.find(pubkey)
    if row is None or row.state is not State.DEPLOYED or row.trial.progress is Progress.DUE:
        return
    row = replace(row, trial=ended(row.trial, facts.now), owed_since=facts.now)
    tx.containers.save(row)
    if row.trial.is_hopeless:
        advance(tx, facts, row, Happening.CANNOT_RUN, reason)
    elif row.trial.crashes == TELL_AT:
        wait_s = row.trial.retry_at - facts.now
        text = f"keeps ending by itself ({reason}). It is started again in {wait_s} s, then later each time."
        tell_admin(tx, facts, row, text)


def _environment(ctx: Context, row: Container) -> dict[str, str]:
    """What a container is told of where it runs, and how it reaches us from inside."""
    told = {"ENCLAVED": ctx.env.value} | wallet_environment(ctx, row)
    if ctx.presence.container_endpoint is not None:
        told["ENCLAVED_ENDPOINT"] = ctx.presence.container_endpoint
        told["ENCLAVED_TOKEN"] = container_token(ctx, row.pubkey, row.generation)
    return told


def _spec(ctx: Context, row: Container) -> ContainerSpec:
    return ContainerSpec(
        pubkey=row.pubkey,
        image=row.image,
        generation=row.generation,
        limits=limits_for(row.units, ctx.policy.unit_size),
        env=row.env | _environment(ctx, row),
        volumes=row.volumes,
        ports=row.ports,
        admin=row.admin,
    )
