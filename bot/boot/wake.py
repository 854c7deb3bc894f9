"""The first minute of a server: who are we, as what may we run, and what can we prove?

module ─ document ─┐
release.json ──────┴ standing (judged by ourselves) ─ escrow ─ identity ─ proof
parent's claims ───┘
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from bot.adapters.nsm import NsmAttester, open_transport
from bot.adapters.relay_events import RelayEvents
from bot.boot.identity import load_key
from bot.boot.standing import (
    NotProduction,
    ParentMeta,
    ReleasePolicy,
    Standing,
    judge_parent,
    load_release_policy,
    parse_meta_untrusted,
)
from bot.boot.unlock import Halted, Unlocker
from bot.config import Config, ConfigError
from handlers.ports import Clock
from handlers.proof import Proof
from keycrux_client.client import EscrowClient
from keycrux_client.discovery import Service, Trust, discover
from keycrux_client.protocol import Credentials, EscrowPolicy
from keycrux_client.refresh import Keeper
from nips.anchor import AWS_NITRO_ROOT_G1, Anchor, development_anchor
from nips.attestation import Verifier
from nips.errors import BadInput
from nips.keys import SecretKey

log = structlog.get_logger()


@dataclass(frozen=True)
class Awake:
    """What the rest of the server is built on. Outside of an enclave there is a key and no proof."""

    key: SecretKey
    proof: Proof | None = None
    keeper: Keeper | None = None
    repo: str = ""
    announce_urls: tuple[str, ...] = ()


async def wake(
    config: Config,
    events: RelayEvents,
    own_urls: Sequence[str],
    clock: Clock,
    *,
    forget_state: bool = False,
) -> Awake:
    """Raises `Halted`, `NsmUnusable`, `ConfigError` with what must be done."""
    place = config.attestation
    if place.nsm is None:
        if config.escrow.repo:
            raise ConfigError("[escrow] needs [attestation] nsm: nobody else can ask for our key")
        return Awake(load_key(config.server.state_dir / "instance.key"))
    attester = NsmAttester(open_transport(place.nsm))
    verifier = Verifier(_anchor(place.development_root))
    policy, meta = load_release_policy(), _meta(place.meta_file)
    standing = await _judge(attester, verifier, policy, meta, clock)
    if config.escrow.repo:
        relay_urls = config.escrow.relays or (*own_urls, *config.relays.urls)
        unlocker = _unlocker(
            config, events, attester, verifier, policy, standing, relay_urls, clock, forget_state
        )
        unlocked = await unlocker.unlock()
        key, keeper = unlocked.identity, unlocked.keeper
    else:
        key, keeper = load_key(config.server.state_dir / "instance.key"), None
    proof = Proof(key, attester, verifier, standing.signatures, standing.env)
    root = await proof.current(clock.now())
    log.info("attested", trust=root.attested.anchor.trust, env=root.env.value)
    return Awake(key, proof, keeper, policy.repo, meta.relay_urls)


def _anchor(development_root: Path | None) -> Anchor:
    if development_root is None:
        return AWS_NITRO_ROOT_G1
    try:
        anchor = development_anchor(development_root.read_bytes())
    except (OSError, BadInput) as error:
        raise ConfigError(f"[attestation] development_root: {error}") from error
    log.warning("DEVELOPMENT ONLY: attested by a root of this machine", root=anchor.sha256)
    return anchor


def _meta(path: Path | None) -> ParentMeta:
    """What the parent hands over. Unreadable or malformed, it is worth nothing, and we say so."""
    if path is None:
        return ParentMeta()
    try:
        return parse_meta_untrusted(path.read_bytes())
    except (OSError, BadInput) as error:
        log.warning("the parent's meta is not used", reason=str(error))
        return ParentMeta()


async def _judge(
    attester: NsmAttester,
    verifier: Verifier,
    policy: ReleasePolicy,
    meta: ParentMeta,
    clock: Clock,
) -> Standing:
    # Any key will do to look at ourselves; our own is not known yet.
    key = SecretKey.generate()
    document = await attester.document(public_key=bytes.fromhex(key.pubkey))
    try:
        standing = judge_parent(meta, policy, document, key, verifier, clock.now())
    except (NotProduction, BadInput) as error:
        raise Halted(str(error)) from error
    for reason in standing.refused:
        log.warning("the parent handed over what does not hold", reason=reason)
    return standing


def _unlocker(
    config: Config,
    events: RelayEvents,
    attester: NsmAttester,
    verifier: Verifier,
    policy: ReleasePolicy,
    standing: Standing,
    relay_urls: Sequence[str],
    clock: Clock,
    forget_state: bool,
) -> Unlocker:
    escrow = config.escrow
    # A development root vouches for debug and nothing else; naming it is allowing that.
    allow_debug = escrow.allow_debug or verifier.anchor.is_development
    trust = Trust(escrow.repo, frozenset(escrow.maintainers), allow_debug)

    async def find_services() -> Sequence[Service]:
        found = await discover(events, relay_urls, trust, verifier, clock.now())
        for pubkey, verdict in found.refused:
            log.warning("an escrow service is not believed", service=pubkey, why=verdict.reason)
        return found.services

    try:
        terms = EscrowPolicy(policy.repo, policy.maintainers)
    except ValueError as error:
        raise ConfigError(f"release.json of this image: {error}") from error
    if not policy.maintainers:
        raise ConfigError("release.json of this image names nobody who could sign the next one")
    credentials = Credentials(policy.repo, standing.signatures.releases)
    return Unlocker(
        EscrowClient(events, attester, clock, credentials, terms),
        find_services,
        config.server.state_dir / "identity.sealed",
        halt_after_s=escrow.halt_after_s,
        forget_state=forget_state,
    )
