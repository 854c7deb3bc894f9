"""What we tell the world: the instance, and each container whose facts changed or grew old."""

from dataclasses import dataclass

from handlers.commands.info import endpoints
from handlers.context import Context, Facts, own_units
from handlers.domain.ledger import container_account
from handlers.domain.lifecycle import State, wire_state
from handlers.domain.pricing import sat_floor
from handlers.proof import MARGIN_S
from handlers.records import Announcement, Container
from handlers.tables import Tx
from handlers.transitions import held_units
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
BATCH = 50


async def instance_events(ctx: Context) -> tuple[list[VerifiedEvent], int]:
    """13793, kind 0, 10002 and 10050 of the instance, and in how many seconds to announce again: hourly,
    and before the attestation ends that is announced here."""
    held = await ctx.store.read(held_units)
    root = await current_root(ctx)
    now, presence, policy = ctx.clock.now(), ctx.presence, ctx.policy
    free = max(0, policy.capacity.total_units - held)
    facts = InstanceFacts(
        name=presence.name,
        about=presence.about,
        version=presence.version,
        repo=presence.repo,
        relay_urls=presence.relay_urls,
        open_for_new=free > 0 and ctx.alarms.no_containers_because is None,
        price_msat=policy.tariff.price_msat,
        interval_s=policy.tariff.interval_s,
        units_free=free,
        units_total=policy.capacity.total_units - own_units(ctx.builtins),
        wallet=_wallet(ctx),
    )
    signatures = ctx.proof.signatures if ctx.proof is not None else Signatures()
    events = [
        build_announcement(ctx.key, facts, root, signatures, now),
        build_profile(ctx.key, name=presence.name, about=presence.about, lud16=None, now=now),
        build_relay_list(ctx.key, presence.relay_urls, now),
        build_dm_relay_list(ctx.key, presence.relay_urls, now),
    ]
    if root is None:
        return events, HOURLY_S
    return events, max(60, min(HOURLY_S, root.attested.not_after - now - MARGIN_S))


def _wallet(ctx: Context) -> tuple[str, str] | None:
    """Whose it is matters: the operator of his own wallet could take what lies in it."""
    service = ctx.wallet.service_pubkey
    whose = "operator" if ctx.own_wallet is None else "enclave"
    return (service, whose) if service is not None else None


async def current_root(ctx: Context) -> Root | None:
    """Our attestation, or None outside of an enclave."""
    return await ctx.proof.current(ctx.clock.now()) if ctx.proof is not None else None


@dataclass(frozen=True)
class _Due:
    """A container of which the world must be told, with what it was told last."""

    row: Container
    told: Announcement | None
    balance_sat: int


async def announce_containers(ctx: Context) -> None:
    """Queue announcements of containers that changed, or were told of long ago."""
    due = await ctx.store.read(_list_due, ctx.facts())
    if not due:
        return
    root = await current_root(ctx)
    for item in due:
        await ctx.store.write(_queue, ctx.facts(), item, _told(ctx, item, root))
    ctx.nudge.outbox()
    if len(due) == BATCH:
        ctx.nudge.announce()


def _list_due(tx: Tx, facts: Facts) -> list[_Due]:
    return [
        _Due(row, told, sat_floor(tx.ledger.balance(container_account(row.pubkey))))
        for row, told in tx.announcements.list_due(facts.now, facts.policy.announce_every_s, BATCH)
    ]


@dataclass(frozen=True)
class _Events:
    """What is said of a container now. None: nothing."""

    announcement: VerifiedEvent | None
    profile: VerifiedEvent | None
    deletion: VerifiedEvent | None


def _told(ctx: Context, due: _Due, root: Root | None) -> _Events:
    """Signed here, in the event loop: no key ever enters the store's thread."""
    row, told, now = due.row, due.told, ctx.clock.now()
    old = told.event_id if told is not None else None
    # 63797 is outside NIP-01's replaceable ranges: what we replace, we delete (NIP-09).
    deletion = build_deletion(row.key, [(old, kinds.CONTAINER)], now) if old is not None else None
    if row.state is State.STOPPED:
        return _Events(None, None, deletion)
    # Relays lose things: the profile, by which a container is found and zapped, is told again.
    fresh = told is not None and 0 <= now - told.profile_at < ctx.policy.profile_every_s
    profile = None if fresh else _profile(ctx, row, now)
    event = build_container(row.key, _facts(ctx, due), _proof(ctx, row, root, now), now)
    return _Events(event, profile, deletion)


def _queue(tx: Tx, facts: Facts, due: _Due, events: _Events) -> None:
    """What changed again meanwhile has another revision, and stays due."""
    pubkey, told = due.row.pubkey, due.told
    if events.deletion is not None:
        tx.outbox.post(events.deletion, facts.now)
    if events.profile is not None:
        tx.outbox.post(events.profile, facts.now, subject=f"profile:{pubkey}")
    if events.announcement is not None:
        tx.outbox.post(events.announcement, facts.now, subject=f"container:{pubkey}")
    profile_at = (
        facts.now if events.profile is not None else told.profile_at if told is not None else 0
    )
    event_id = events.announcement.id if events.announcement is not None else None
    tx.announcements.save(Announcement(pubkey, event_id, due.row.revision, facts.now, profile_at))


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


def _facts(ctx: Context, due: _Due) -> ContainerFacts:
    row = due.row
    return ContainerFacts(
        instance=ctx.key.pubkey,
        admin=row.admin,
        state=wire_state(row.state),
        balance_sat=due.balance_sat,
        image=row.image,
        units=row.units,
        endpoints=endpoints(ctx, row) if row.state is State.DEPLOYED else (),
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
    host = ctx.presence.lud16_host or ctx.wallet.zap_address_host
    return f"{npub(pubkey)}@{host}" if host else None
