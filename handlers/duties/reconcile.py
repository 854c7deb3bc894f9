"""Makes the engine match the store. The only code that starts or stops containers.

`survey` says what is to be done, `carry_out` does one of these things. Both are safe at any moment
and after any crash: the next survey sees what is really there.
"""

from dataclasses import replace

from handlers.certify import container_token
from handlers.context import Context
from handlers.domain.lifecycle import Happening, Standing, State
from handlers.domain.limits import limits_for
from handlers.domain.plan import Do, Wanted, plan
from handlers.duties.charge import charge_now
from handlers.ports import CannotStart, ContainerSpec, Tx
from handlers.records import Container
from handlers.transitions import advance

# What is stopped is simply not wanted: the engine's part of it is a stray.
_STANDING = [state for state in State if state is not State.STOPPED]


async def survey(ctx: Context) -> dict[str, Do]:
    """One action for each container where store and engine differ."""
    # The engine is asked first: a container that is added in between is simply not there yet, while
    # the other order could take a freshly started one for a stray.
    found = await ctx.engine.found()
    wanted = await ctx.store.read(_wanted)
    return plan(wanted, found)


def _wanted(tx: Tx) -> dict[str, Wanted]:
    return {
        row.pubkey: Wanted(row.state, row.generation, row.standing)
        for row in tx.containers(_STANDING)
    }


async def carry_out(ctx: Context, pubkey: str, do: Do) -> bool:
    """Do it, unless the store has changed its mind. False when it should be tried again a bit later."""
    match do:
        case Do.START:
            return await _start(ctx, pubkey)
        case Do.RECREATE:
            await _settle_up(ctx, pubkey)
            await ctx.engine.remove(pubkey, keep_volumes=True)
            return await _start(ctx, pubkey)
        case Do.HALT:
            await ctx.engine.halt(pubkey)
        case Do.REMOVE:
            await ctx.engine.remove(pubkey, keep_volumes=False)
        case Do.GIVE_UP:
            await _give_up_on_exit(ctx, pubkey)
    return True


async def _start(ctx: Context, pubkey: str) -> bool:
    row = await ctx.store.write(lambda tx: _owe_start(tx, pubkey, ctx.clock.now()))
    if row is None:
        return True
    problem = await ctx.engine.start(_spec(ctx, row))
    if problem is not None:
        return await _cannot_start(ctx, row, problem)
    generation = row.generation
    if not await ctx.store.write(lambda tx: _started(tx, pubkey, generation)):
        # The admin stopped it, or its balance ran out, while it was being pulled.
        ctx.wake.reconcile()
    ctx.wake.announce()
    return True


def _owe_start(tx: Tx, pubkey: str, now: int) -> Container | None:
    """The row, if it must run; a start that was not owed before is owed from now on."""
    row = tx.container(pubkey)
    if row is None or row.state is not State.DEPLOYED:
        return None
    if row.standing is not Standing.DUE:
        row = replace(row, standing=Standing.DUE, owed_since=now)
        tx.save_container(row)
    return row


def _started(tx: Tx, pubkey: str, generation: int) -> bool:
    """Note that it was started; False when that is not wanted any more."""
    row = tx.container(pubkey)
    if row is None or row.state is not State.DEPLOYED or row.generation != generation:
        return False
    tx.save_container(replace(row, standing=Standing.STARTED, dirty=True))
    return True


async def _cannot_start(ctx: Context, row: Container, problem: CannotStart) -> bool:
    """False when it is worth another try. Standing in line behind others does not count as being late."""
    owed_since = row.owed_since + problem.waited_s
    late = ctx.clock.now() - owed_since > ctx.policy.start_deadline_s
    if not problem.permanent and not late:
        await ctx.store.write(lambda tx: _owe_since(tx, row, owed_since))
        return False
    await _give_up(ctx, row.pubkey, row.generation, problem.reason)
    return True


def _owe_since(tx: Tx, tried: Container, owed_since: int) -> None:
    row = tx.container(tried.pubkey)
    if row is not None and row.generation == tried.generation and row.owed_since != owed_since:
        tx.save_container(replace(row, owed_since=owed_since))


async def _give_up_on_exit(ctx: Context, pubkey: str) -> None:
    row = await ctx.store.read(lambda tx: tx.container(pubkey))
    if row is not None:
        await _give_up(ctx, pubkey, row.generation, await ctx.engine.exit_reason(pubkey))


async def _give_up(ctx: Context, pubkey: str, generation: int, reason: str) -> None:
    def write(tx: Tx) -> None:
        row = tx.container(pubkey)
        # One that was restarted meanwhile is another try.
        if row is not None and row.generation == generation:
            advance(tx, ctx, row, Happening.CANNOT_RUN, ctx.clock.now(), reason[:300])

    await ctx.store.write(write)
    ctx.wake.reconcile()
    ctx.wake.announce()
    ctx.wake.outbox()


async def _settle_up(ctx: Context, pubkey: str) -> None:
    """Charge the run that we are about to end."""
    run = ctx.engine.runs().get(pubkey)

    def write(tx: Tx) -> None:
        row = tx.container(pubkey)
        if row is not None and row.state is State.DEPLOYED:
            charge_now(tx, ctx, row, run)

    await ctx.store.write(write)


def _environment(ctx: Context, row: Container) -> dict[str, str]:
    """What a container is told of where it runs, and how it reaches us from inside."""
    told = {"ENCLAVED": ctx.env.value}
    if ctx.places.container_endpoint is not None:
        told["ENCLAVED_ENDPOINT"] = ctx.places.container_endpoint
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
