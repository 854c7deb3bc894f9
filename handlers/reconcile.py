"""Makes the engine match the store. The only code that starts or stops containers.

`survey` says what is to be done, `carry_out` does one of these things. Both are safe at any moment
and after any crash: the next survey sees what is really there.
"""

from dataclasses import replace

from handlers.charge import charge_now
from handlers.context import Context
from handlers.domain.lifecycle import Happening, State
from handlers.domain.limits import limits_for
from handlers.domain.plan import Do, Wanted, plan
from handlers.ports import CannotStart, ContainerSpec, Tx
from handlers.records import Container
from handlers.transitions import advance


async def survey(ctx: Context) -> dict[str, Do]:
    """One action for each container where store and engine differ."""
    # The engine is asked first: a container that is added in between is simply not there yet, while
    # the other order could take a freshly started one for a stray.
    found = await ctx.engine.found()
    wanted = await ctx.store.read(_wanted)
    return plan(wanted, found)


def _wanted(tx: Tx) -> dict[str, Wanted]:
    return {row.pubkey: Wanted(row.state, row.generation, row.proven) for row in tx.containers()}


async def carry_out(ctx: Context, pubkey: str, do: Do) -> None:
    """Do it, unless the store has changed its mind meanwhile."""
    match do:
        case Do.START:
            await _start(ctx, pubkey)
        case Do.RECREATE:
            await _settle_up(ctx, pubkey)
            await ctx.engine.remove(pubkey, keep_volumes=True)
            await _start(ctx, pubkey)
        case Do.HALT:
            await ctx.engine.halt(pubkey)
        case Do.REMOVE:
            await ctx.engine.remove(pubkey, keep_volumes=False)
        case Do.GIVE_UP:
            reason = await ctx.engine.exit_reason(pubkey)
            await _give_up(ctx, pubkey, reason)


async def _start(ctx: Context, pubkey: str) -> None:
    row = await ctx.store.write(lambda tx: _expect_proof(tx, pubkey))
    if row is None:
        return
    problem = await ctx.engine.start(_spec(ctx, row))
    if problem is not None:
        await _cannot_start(ctx, row, problem)
        return
    # The admin may have stopped it, or its balance run out, while it was being pulled.
    current = await ctx.store.read(lambda tx: tx.container(pubkey))
    if current is None or current.state is not State.DEPLOYED:
        ctx.wake.reconcile()
    ctx.wake.announce()


def _expect_proof(tx: Tx, pubkey: str) -> Container | None:
    row = tx.container(pubkey)
    if row is None or row.state is not State.DEPLOYED:
        return None
    row = replace(row, proven=False, dirty=True)
    tx.save_container(row)
    return row


async def _cannot_start(ctx: Context, row: Container, problem: CannotStart) -> None:
    late = ctx.clock.now() - row.state_since > ctx.policy.start_deadline_s
    if problem.permanent or late:
        await _give_up(ctx, row.pubkey, problem.reason)


async def _give_up(ctx: Context, pubkey: str, reason: str) -> None:
    def write(tx: Tx) -> None:
        row = tx.container(pubkey)
        if row is not None:
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


def _spec(ctx: Context, row: Container) -> ContainerSpec:
    return ContainerSpec(
        pubkey=row.pubkey,
        image=row.image,
        generation=row.generation,
        limits=limits_for(row.units, ctx.policy.unit_size),
        env=row.env | {"ENCLAVED": "debug"},
        volumes=row.volumes,
        ports=row.ports,
    )
