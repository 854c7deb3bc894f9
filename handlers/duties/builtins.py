"""Containers that are the instance's own: named in its image, started before any tenant, for nobody's money.

They are rows like all others, so that reconcile, checkpoints and certificates need not know of them; what is different is
here: their admin is the instance, whom nobody can sign for; their units are not for sale; and whatever ends them, they are
started again, for ever.
"""

from dataclasses import replace

from handlers.alarms import Alarm
from handlers.commands.quote import resolve
from handlers.context import Builtin, Caller, Context, Facts
from handlers.domain.capacity import NoCapacity
from handlers.domain.lifecycle import Happening, State
from handlers.domain.pricing import Tariff
from handlers.errors import Refusal
from handlers.ports import ResolvedImage
from handlers.records import Container
from handlers.tables import Tx
from handlers.transitions import advance
from nips.keys import SecretKey

# A msat in thirty thousand years: metered like all others, and never charged.
FREE = Tariff(price_msat=1, interval_s=10**12)
MOST = 16


async def keep_builtins(ctx: Context) -> None:
    """Each of them is there as the image names it, or there is an alarm."""
    problem = None
    for wanted in ctx.builtins:
        problem = await _keep(ctx, wanted) or problem
    ctx.alarms.set(Alarm.BUILTIN, problem)


async def _keep(ctx: Context, wanted: Builtin) -> str | None:
    """What stands in its way."""
    row = await ctx.store.read(find_own, ctx.key.pubkey, wanted.name)
    if row is not None and _is_as(row, wanted):
        await ctx.store.write(_revive, ctx.facts(), row.pubkey)
        return None
    found = await resolve(ctx, Caller(ctx.key.pubkey, public=False), wanted.image, wanted.units)
    if isinstance(found, Refusal):
        return f"{wanted.name}: {found.text}"
    image = found.ref.pinned(found.digest)
    if row is None:
        await ctx.store.write(_add, _row(ctx, wanted, found, image))
    else:
        await ctx.store.write(_renew, ctx.facts(), row.pubkey, wanted, image, found.volumes)
    ctx.nudge.reconcile()
    ctx.nudge.announce()
    return None


def find_own(tx: Tx, instance: str, name: str) -> Container | None:
    """The row of a container of our own."""
    rows = tx.containers.list_of(instance, MOST)
    return next((row for row in rows if row.name == name), None)


def _is_as(row: Container, wanted: Builtin) -> bool:
    return (row.asked_for, row.units, row.env) == (str(wanted.image), wanted.units, wanted.env)


def _row(ctx: Context, wanted: Builtin, found: ResolvedImage, image: str) -> Container:
    key, now = SecretKey.generate(), ctx.clock.now()
    return Container(
        pubkey=key.pubkey,
        secret=key.reveal_secret(),
        admin=ctx.key.pubkey,
        name=wanted.name,
        asked_for=str(wanted.image),
        image=image,
        units=wanted.units,
        tariff=FREE,
        state=State.DEPLOYED,
        state_since=now,
        created_at=now,
        owed_since=now,
        env=dict(wanted.env),
        volumes=found.volumes,
    )


def _add(tx: Tx, row: Container) -> None:
    if find_own(tx, row.admin, row.name) is None:
        tx.containers.add(row)


def _renew(
    tx: Tx, facts: Facts, pubkey: str, wanted: Builtin, image: str, volumes: tuple[str, ...]
) -> Container | NoCapacity | None:
    """After an upgrade the image names another one: it keeps its key and its volumes."""
    row = tx.containers.find(pubkey)
    if row is None:
        return None
    changed = replace(
        row,
        asked_for=str(wanted.image),
        image=image,
        units=wanted.units,
        env=dict(wanted.env),
        volumes=volumes,
    )
    return advance(tx, facts, changed, Happening.RESTART_ASKED)


def _revive(tx: Tx, facts: Facts, pubkey: str) -> Container | NoCapacity | None:
    """Whatever gave it up: after a while it is tried again."""
    row = tx.containers.find(pubkey)
    if row is None or row.state is State.DEPLOYED:
        return None
    if facts.now - row.state_since < facts.policy.restart_every_s:
        return None
    return advance(tx, facts, row, Happening.RESTART_ASKED)
