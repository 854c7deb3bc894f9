"""The first minute of a server: who are we, as what may we run, and what can we prove?

module ─ document ─┐
release.json ──────┴ standing (judged by ourselves) ─ escrow ─ identity ─ proof
parent's claims ───┘
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from bot.adapters.nsm import NsmAttester
from bot.adapters.relay_events import RelayEvents
from bot.boot.anchors import load_anchor, open_module
from bot.boot.heads import heads_of, newest_head
from bot.boot.identity import load_key
from bot.boot.line import Line, NoLine
from bot.boot.put_back import Folders
from bot.boot.standing import (
    NotProduction,
    ParentMeta,
    ReleasePolicy,
    Standing,
    env_for,
    judge_parent,
    load_release_policy,
    parse_meta_untrusted,
)
from bot.boot.steps import Step, Steps
from bot.boot.unlock import Halted, Unlocked, Unlocker
from bot.checkpoint.blobs import Blobs
from bot.checkpoint.folder import FolderBlobs
from bot.config import AttestationConfig, Config, ConfigError
from bot.files import read_bounded
from bot.parent.client import ParentBlobs, ParentChannel, ParentSilent
from handlers.ports import Clock
from handlers.proof import Proof
from keycrux_client.client import EscrowClient
from keycrux_client.discovery import Discovered, Trust, discover
from keycrux_client.protocol import Credentials, EscrowPolicy
from keycrux_client.refresh import Keeper
from keycrux_client.shares import Head
from netstack.vsock import parse_address
from nips.errors import BadInput
from nips.keys import SecretKey
from nips.tee.anchor import Anchor
from nips.tee.attestation import Verifier
from nips.tee.env import Env
from nips.tee.nec01 import build_root, verify_root

log = structlog.get_logger()
MAX_META_BYTES = 1 << 20
# Whose escrow is good enough for whom: never one that more people can look into than into us.
_ENVS = {
    Env.PROD: frozenset({Env.PROD}),
    Env.DEV: frozenset({Env.PROD, Env.DEV}),
    Env.DEBUG: frozenset(Env),
}


@dataclass(frozen=True)
class Awake:
    """What the rest of the server is built on. Outside of an enclave there is a key and no proof."""

    key: SecretKey
    proof: Proof | None = None
    # What escrow gave back, or was given.
    unlocked: Unlocked | None = None
    repo: str = ""
    announce_urls: tuple[str, ...] = ()

    @property
    def keeper(self) -> Keeper | None:
        """Who keeps our key alive in escrow."""
        return self.unlocked.keeper if self.unlocked is not None else None


@dataclass(frozen=True)
class Surroundings:
    """Where we woke up: the module, the root that it must lead to, what the image says, the way out."""

    attester: NsmAttester
    verifier: Verifier
    policy: ReleasePolicy
    events: RelayEvents
    clock: Clock


async def wake(
    config: Config,
    events: RelayEvents,
    own_urls: Sequence[str],
    clock: Clock,
    steps: Steps,
    *,
    forget_state: bool = False,
) -> Awake:
    """Raises `Halted`, `NsmUnusable`, `ConfigError` with what must be done."""
    attestation = config.attestation
    if not attestation.is_attested:
        return Awake(load_key(config.server.state_dir / "instance.key"))
    steps.reach(Step.STANDING)
    around = _look_around(attestation, events, clock)
    meta = await _meta(attestation.meta_file, parent_of(config))
    standing = await _judge(around, meta)
    if around.policy.escrow.repo:
        steps.reach(Step.ESCROW)
        urls = config.escrow.relays or (*own_urls, *config.relays.urls)
        unlocked = await _unlock(config, around, standing, urls, steps, forget_state=forget_state)
    else:
        unlocked = None
        log.warning("no key escrow: this identity ends with this process")
    # Never from a file: what the parent could read, or have written, is not who we are.
    key = unlocked.identity if unlocked is not None else SecretKey.generate()
    proof = Proof(key, around.attester, around.verifier, standing.signatures, standing.env)
    root = await proof.current(clock.now())
    log.info("attested", trust=root.attested.anchor.trust, env=root.env.value)
    return Awake(key, proof, unlocked, around.policy.repo, meta.relay_urls)


def _look_around(
    attestation: AttestationConfig, events: RelayEvents, clock: Clock
) -> Surroundings:
    attester = NsmAttester(open_module(attestation))
    try:
        policy = load_release_policy()
    except BadInput as error:
        raise ConfigError(str(error)) from error
    return Surroundings(
        attester, Verifier(_anchor(attestation.development_root)), policy, events, clock
    )


def _anchor(development_root: Path | None) -> Anchor:
    try:
        anchor = load_anchor(development_root)
    except BadInput as error:
        raise ConfigError(f"[attestation] development_root: {error}") from error
    if anchor.is_development:
        log.warning("DEVELOPMENT ONLY: attested by a root of this machine", root=anchor.sha256)
    return anchor


async def _meta(path: Path | None, parent: ParentChannel | None) -> ParentMeta:
    """What the parent hands over. Unreadable or malformed, it is worth nothing, and we say so."""
    try:
        raw = await _raw_meta(path, parent)
        return parse_meta_untrusted(raw) if raw is not None else ParentMeta()
    except (OSError, BadInput, ParentSilent) as error:
        log.warning("the parent's meta is not used", reason=str(error))
        return ParentMeta()


async def _raw_meta(path: Path | None, parent: ParentChannel | None) -> bytes | None:
    if path is not None:
        return read_bounded(path, MAX_META_BYTES)
    return await parent.get_meta() if parent is not None else None


async def _judge(around: Surroundings, meta: ParentMeta) -> Standing:
    # Any key will do to look at ourselves; our own is not known yet.
    key, now = SecretKey.generate(), around.clock.now()
    document = await around.attester.document(public_key=bytes.fromhex(key.pubkey))
    try:
        attested = around.verifier.verify(document, now)
        env = env_for(attested, prod=meta.prod)
        event = build_root(key, document, env, attested.not_after, now)
        root = verify_root(event.json.decode(), around.verifier, now)
        standing = judge_parent(meta, around.policy, root, key, around.verifier, now)
    except (NotProduction, BadInput) as error:
        raise Halted(str(error)) from error
    for reason in standing.refused:
        log.warning("the parent handed over what does not hold", reason=reason)
    return standing


def parent_of(config: Config) -> ParentChannel | None:
    """The channel to our parent, where there is one."""
    address = config.parent.address
    return ParentChannel(parse_address(address)) if address else None


async def tell_parent(config: Config, text: str) -> None:
    """A line for the operator's eyes, where there is a parent."""
    if (parent := parent_of(config)) is not None:
        await parent.log(text)


def blobs_of(config: Config) -> Blobs:
    """Who keeps our checkpoints: the parent; or, where the disk is our own, a folder on it."""
    parent = parent_of(config)
    return ParentBlobs(parent) if parent else FolderBlobs(config.server.state_dir / "backup")


def folders_of(config: Config) -> Folders:
    """Where files of a checkpoint belong here."""
    return Folders(config.server.state_dir, config.engine.disks)


async def _unlock(
    config: Config,
    around: Surroundings,
    standing: Standing,
    relay_urls: Sequence[str],
    steps: Steps,
    *,
    forget_state: bool,
) -> Unlocked:
    policy, escrow = around.policy, around.policy.escrow
    trust = Trust(escrow.repo, frozenset(escrow.maintainers), _ENVS[standing.env])

    async def find_services() -> Discovered:
        found = await discover(
            around.events, relay_urls, trust, around.verifier, around.clock.now()
        )
        for pubkey, reason in found.refused:
            log.warning("an escrow service is not believed", service=pubkey, why=reason)
        if found.silent:
            log.warning("relays of escrow services do not answer", relays=list(found.silent))
        await around.events.believe(service.pubkey for service in found.services)
        return found

    async def tell(reason: str) -> None:
        steps.halt(reason)
        await tell_parent(config, f"halted: {reason}")

    async def find_head(pubkey: str) -> Head | None:
        return newest_head(await around.events.find([heads_of(pubkey)], relay_urls), pubkey)

    credentials = Credentials(policy.repo, standing.signatures.releases)
    client = EscrowClient(
        around.events, around.attester, around.clock, credentials, _terms(policy)
    )
    return await Unlocker(
        client,
        find_services,
        blobs_of(config),
        escrow.services,
        config.escrow.halt_after_s,
        forget_state,
        tell,
        find_head,
        Line(folders_of(config).books) if config.parent.address else NoLine(),
    ).unlock()


def _terms(policy: ReleasePolicy) -> EscrowPolicy:
    if not policy.repo or not policy.maintainers:
        raise ConfigError(
            "release.json of this image names no repo, or nobody who could sign the next version: "
            "nobody could get the key back for it"
        )
    return EscrowPolicy(policy.repo, policy.maintainers)
