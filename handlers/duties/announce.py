"""What we tell the world: the instance, and each container whose facts changed or grew old."""

from dataclasses import replace

from handlers.commands.info import endpoints
from handlers.context import Context
from handlers.domain.ledger import container_account
from handlers.domain.lifecycle import State, wire_state
from handlers.domain.pricing import sat_floor
from handlers.ports import Tx
from handlers.proof import MARGIN_S
from handlers.records import Container
from nips import kinds
from nips.event import VerifiedEvent
from nips.nip09 import build_deletion
from nips.nip19 import npub
from nips.nip24 import build_profile
from nips.nip65 import build_dm_relay_list, build_relay_list
from nips.tee.certificates import Role, build_certificate
from nips.tee.container import ContainerFacts, build_container
from nips.tee.nec01 import Root
from nips.tee.nec02 import InstanceFacts, Signatures, build_announcement

HOURLY_S = 3_600
# An unpaid place is told of once: repeating it would be a stranger's free advertisement.
_TOLD_AGAIN = frozenset({State.DEPLOYED, State.PAUSED, State.SHELVED})


async def instance_events(ctx: Context) -> tuple[list[VerifiedEvent], int]:
    """13793, kind 0, 10002 and 10050 of the instance, and in how many seconds to announce again: hourly,
    and before the attestation ends that is announced here."""
    held = await ctx.store.read(lambda tx: tx.held_units())
    root = await current_root(ctx)
    now, places, policy = ctx.clock.now(), ctx.places, ctx.policy
    free = max(0, policy.capacity.total_units - held)
    facts = InstanceFacts(
        name=places.name,
        about=places.about,
        version=places.version,
        repo=places.repo,
        relay_urls=places.relay_urls,
        open_for_new=free > 0 and ctx.admission.closed_because is None,
        price_msat=policy.tariff.price_msat,
        interval_s=policy.tariff.interval_s,
        units_free=free,
        units_total=policy.capacity.total_units,
    )
    signatures = ctx.proof.signatures if ctx.proof is not None else Signatures()
    events = [
        build_announcement(ctx.key, facts, root, signatures, now),
        build_profile(ctx.key, name=places.name, about=places.about, lud16=None, now=now),
        build_relay_list(ctx.key, places.relay_urls, now),
        build_dm_relay_list(ctx.key, places.relay_urls, now),
    ]
    if root is None:
        return events, HOURLY_S
    return events, max(60, min(HOURLY_S, root.attested.not_after - now - MARGIN_S))


async def current_root(ctx: Context) -> Root | None:
    """Our attestation, or None outside of an enclave."""
    return await ctx.proof.current(ctx.clock.now()) if ctx.proof is not None else None


async def queue_container_events(ctx: Context) -> int:
    """Queue announcements of containers that changed, or were told long ago; how many."""
    root = await current_root(ctx)
    queued = await ctx.store.write(lambda tx: _queue_all(tx, ctx, root))
    if queued:
        ctx.wake.outbox()
    return queued


def _queue_all(tx: Tx, ctx: Context, root: Root | None) -> int:
    now = ctx.clock.now()
    count = 0
    for row in tx.containers():
        age_s = abs(now - row.announced_at)
        old = row.state in _TOLD_AGAIN and age_s >= ctx.policy.announce_every_s
        if row.dirty or old:
            _queue(tx, ctx, row, root, now)
            count += 1
    return count


def _queue(tx: Tx, ctx: Context, row: Container, root: Root | None, now: int) -> None:
    relays = ctx.places.relay_urls
    if row.announced_id is not None:
        # 63797 is outside NIP-01's replaceable ranges: what we replace, we delete (NIP-09).
        tx.enqueue(
            build_deletion(row.key, [(row.announced_id, kinds.CONTAINER)], now), relays, now
        )
    if row.state is State.STOPPED:
        tx.save_container(replace(row, dirty=False, announced_id=None, announced_at=now))
        return
    event = build_container(row.key, _facts(tx, ctx, row), _proof(ctx, row, root, now), now)
    if row.announced_id is None:
        tx.enqueue(_profile(ctx, row, now), relays, now)
    tx.enqueue(event, relays, now)
    tx.save_container(replace(row, dirty=False, announced_id=event.id, announced_at=now))


def _proof(
    ctx: Context, row: Container, root: Root | None, now: int
) -> tuple[Root, VerifiedEvent] | None:
    """Our attestation, and our word for the container's key and the digest that runs under it."""
    if root is None:
        return None
    certificate = build_certificate(
        ctx.key,
        row.pubkey,
        Role.CONTAINER,
        now,
        image=row.image,
        not_after=root.attested.not_after,
    )
    return root, certificate


def _facts(tx: Tx, ctx: Context, row: Container) -> ContainerFacts:
    running = row.state is State.DEPLOYED
    return ContainerFacts(
        instance=ctx.key.pubkey,
        admin=row.admin,
        state=wire_state(row.state),
        balance_sat=sat_floor(tx.balance(container_account(row.pubkey))),
        image=row.image,
        units=row.units,
        endpoints=endpoints(ctx, row) if running else (),
        reason=row.reason,
        upgrade=row.upgrade,
        app=row.app,
    )


def _profile(ctx: Context, row: Container, now: int) -> VerifiedEvent:
    return build_profile(
        row.key,
        name=row.name,
        about=f"A container on nostr:{npub(ctx.key.pubkey)}. Zap it to keep it running.",
        lud16=lightning_address(ctx, row.pubkey),
        now=now,
    )


def lightning_address(ctx: Context, pubkey: str) -> str | None:
    """Our own LNURL endpoint where we have one, else the wallet's."""
    host = ctx.places.lud16_host or ctx.wallet.zap_address_host
    return f"{npub(pubkey)}@{host}" if host else None
