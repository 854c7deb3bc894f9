"""As what may we run? What the parent hands over, against what is measured into the image.

The parent is not trusted: it may swap the launcher's signature for another instance's, leave out releases,
forge them, or claim production for a debug enclave. Each signature is verified against our own
document; to run as ``prod``, our announcement must pass the very verification that strangers will make.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import orjson

from nips.crypto import is_pubkey
from nips.errors import BadInput
from nips.event import Event, parse_event_untrusted
from nips.keys import SecretKey
from nips.tee.attestation import Attested, Verifier
from nips.tee.env import Env
from nips.tee.nec01 import Root
from nips.tee.nec02 import InstanceFacts, Signatures, build_announcement
from nips.tee.nec03 import verify_builder_signature
from nips.tee.nec04 import verify_launcher_signature
from nips.tee.nec05 import verify_release_signature
from nips.tee.policies import ExpectedEnv, ExpectedMaintainers, ExpectedRepo, Policy
from nips.tee.verification import MAX_RELEASES, verify_announcement


class BadMeta(BadInput):
    """What the parent handed over is not what it should be."""


class NotProduction(Exception):
    """The parent claims production and cannot show it; the message says what is missing."""


@dataclass(frozen=True)
class ParentMeta:
    """The parent's claims (``get_meta``), parsed and nothing more."""

    builder: Event | None = None
    launcher: Event | None = None
    releases: tuple[Event, ...] = ()
    relay_urls: tuple[str, ...] = ()
    prod: bool = False


@dataclass(frozen=True)
class EscrowTrust:
    """Which key-escrow services we believe, and how many must be there before an identity is made."""

    repo: str = ""
    maintainers: tuple[str, ...] = ()
    services: int = 1


@dataclass(frozen=True)
class ReleasePolicy:
    """``release.json`` of the image, measured with it: whose releases of which repository we are, and whom
    we trust with our key. Neither may come from the parent, who would name himself.

    Empty, as it is in a checkout, nobody can sign us, we never run as ``prod``, and there is no escrow.
    """

    repo: str
    maintainers: tuple[str, ...]
    escrow: EscrowTrust = EscrowTrust()


@dataclass(frozen=True)
class Standing:
    """What we may claim. ``refused``: what the parent handed over and we do not show, with reasons."""

    env: Env
    signatures: Signatures
    refused: tuple[str, ...]


def load_release_policy(text: str | None = None) -> ReleasePolicy:
    """From the image. Raises `BadMeta`."""
    text = files("bot").joinpath("release.json").read_text() if text is None else text
    try:
        value: object = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadMeta("release.json of this image is not JSON") from error
    match value:
        case {
            "repo": str(repo), "signer_pubkeys": list(pubkeys),
            "escrow": {"repo": str(kept_by), "signer_pubkeys": list(keepers), "services": int(count)},
        } if count >= 1:  # fmt: skip
            escrow = EscrowTrust(kept_by, _pubkeys(keepers), count)
            return ReleasePolicy(repo, _pubkeys(pubkeys), escrow)
        case _:
            shape = '{"repo", "signer_pubkeys", "escrow": {"repo", "signer_pubkeys", "services"}}'
            raise BadMeta(f"release.json of this image is not {shape}")


def _pubkeys(values: Sequence[object]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(v for v in values if isinstance(v, str) and is_pubkey(v)))
    if len(found) != len(values):
        raise BadMeta(
            "release.json of this image names a signer twice, or one that is no public key"
        )
    return found


def parse_meta_untrusted(text: str | bytes) -> ParentMeta:
    """``{build, instance, releases, instanceAnnounceRelays, prod}``. Raises `BadInput`."""
    try:
        value: object = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadMeta("the parent's meta is not JSON") from error
    if not isinstance(value, dict):
        raise BadMeta("the parent's meta is not an object")
    releases, relays = value.get("releases") or [], value.get("instanceAnnounceRelays") or []
    if not isinstance(releases, list) or len(releases) > MAX_RELEASES:
        raise BadMeta(f"releases is not a list of at most {MAX_RELEASES}")
    if not isinstance(relays, list) or not all(isinstance(url, str) for url in relays):
        raise BadMeta("instanceAnnounceRelays is not a list of URLs")
    return ParentMeta(
        _event(value.get("build")),
        _event(value.get("instance")),
        tuple(map(parse_event_untrusted, releases)),
        tuple(relays),
        value.get("prod") is True,
    )


def _event(value: object) -> Event | None:
    return parse_event_untrusted(value) if value is not None else None


def judge_parent(
    meta: ParentMeta,
    policy: ReleasePolicy,
    root: Root,
    key: SecretKey,
    verifier: Verifier,
    now: int,
) -> Standing:
    """``root`` attests ``key``, any key of ours. Raises `NotProduction`, and `BadInput` when we would
    announce what nobody could verify."""
    signatures, refused = _hold(meta, policy, root.attested, now)
    env = env_for(root.attested, prod=meta.prod)
    if meta.prod and env is not Env.PROD:
        raise NotProduction("the parent claims prod, but the document is a debug enclave's")
    policies: list[Policy] = [ExpectedEnv(frozenset({env}))]
    if env is Env.PROD:
        expected = ExpectedMaintainers(frozenset(policy.maintainers))
        policies += [ExpectedRepo(policy.repo), expected]
    facts = InstanceFacts("self", "", "", policy.repo, (), False, 0, 0, 0, 0)
    announcement = build_announcement(key, facts, root, signatures, now)
    verdict, _ = verify_announcement(announcement, verifier, now, policies)
    if not verdict.is_valid and env is Env.PROD:
        raise NotProduction("; ".join([verdict.reason, *refused]))
    if not verdict.is_valid:
        raise BadMeta(f"our own announcement would not verify: {verdict.reason}")
    return Standing(env, signatures, refused)


def env_for(attested: Attested, *, prod: bool) -> Env:
    """What we may call ourselves, if the rest holds as well."""
    return Env.DEBUG if attested.is_debug else Env.PROD if prod else Env.DEV


def _hold(
    meta: ParentMeta, policy: ReleasePolicy, attested: Attested, now: int
) -> tuple[Signatures, tuple[str, ...]]:
    """What of it is true of this very enclave, and why the rest is not."""
    pcrs, refused = attested.pcrs, list[str]()

    def held(what: str, event: Event | None, rule: Callable[[Event], object]) -> Event | None:
        try:
            if event is not None:
                rule(event)
        except BadInput as error:
            refused.append(f"{what}: {error}")
            return None
        return event

    def check_release(event: Event) -> None:
        release = verify_release_signature(event, pcrs)
        if release.repo != policy.repo:
            raise BadMeta("it is for another repository than the image's own")
        if release.maintainer not in policy.maintainers:
            raise BadMeta("it is by somebody whom the image does not name")

    builder = held("build", meta.builder, lambda e: verify_builder_signature(e, pcrs, now))
    launcher = held("instance", meta.launcher, lambda e: verify_launcher_signature(e, pcrs))
    releases = tuple(e for e in meta.releases if held("release", e, check_release) is not None)
    return Signatures(builder, launcher, releases), tuple(refused)
