"""As what may we run? What the parent hands over, against what is measured into the image.

The parent is not trusted: it may swap the launcher's signature for another instance's, leave out releases,
forge them, or claim production for a debug enclave. Each signature is verified against our own
document; to run as ``prod``, our announcement must pass the very verification that strangers will make.
"""

import json
from dataclasses import dataclass
from importlib.resources import files

from nips.attestation import Attested, Verifier
from nips.crypto import is_pubkey
from nips.env import Env
from nips.errors import BadInput
from nips.event import Event, parse_event_untrusted
from nips.keys import SecretKey
from nips.nec01 import build_root, verify_root
from nips.nec02 import InstanceFacts, Signatures, build_announcement
from nips.nec03 import verify_builder_signature
from nips.nec04 import verify_launcher_signature
from nips.nec05 import verify_release_signature
from nips.policies import DebugPolicy, ExpectedMaintainers, ExpectedRepo
from nips.verification import MAX_RELEASES, verify_announcement


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
class ReleasePolicy:
    """``release.json`` of the image, measured with it: whose releases of which repository we are.

    Empty, as it is in a checkout, nobody can sign us, and we never run as ``prod``.
    """

    repo: str
    maintainers: tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """What we may claim. ``refused``: what the parent handed over and we do not show, with reasons."""

    env: Env
    signatures: Signatures
    refused: tuple[str, ...]


def load_release_policy(text: str | None = None) -> ReleasePolicy:
    """From the image. Raises `BadMeta`."""
    text = files("bot").joinpath("release.json").read_text() if text is None else text
    match json.loads(text):
        case {"repo": str(repo), "signer_pubkeys": list(pubkeys)}:
            if not all(isinstance(p, str) and is_pubkey(p) for p in pubkeys):
                raise BadMeta("release.json names a signer that is no public key")
            return ReleasePolicy(repo, tuple(dict.fromkeys(pubkeys)))
        case _:
            raise BadMeta('release.json is not {"repo": …, "signer_pubkeys": […]}')


def parse_meta_untrusted(text: str | bytes) -> ParentMeta:
    """``{build, instance, releases, instanceAnnounceRelays, prod}``. Raises `BadInput`."""
    try:
        value: object = json.loads(text)
    except ValueError as error:
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
    document: bytes,
    key: SecretKey,
    verifier: Verifier,
    now: int,
) -> Standing:
    """``document`` attests ``key``. Raises `NotProduction`, and `BadInput` for a document that fails."""
    attested = verifier.verify(document, now)
    signatures, refused = _hold(meta, policy, attested, now)
    env = Env.DEBUG if attested.is_debug else Env.PROD if meta.prod else Env.DEV
    if meta.prod and env is not Env.PROD:
        raise NotProduction("the parent claims prod, but the document is a debug enclave's")
    problem = _problem(env, signatures, policy, document, attested, key, verifier, now)
    if problem and env is Env.PROD:
        raise NotProduction("; ".join([problem, *refused]))
    if problem:
        raise BadMeta(f"our own announcement would not verify: {problem}")
    return Standing(env, signatures, refused)


def _hold(
    meta: ParentMeta, policy: ReleasePolicy, attested: Attested, now: int
) -> tuple[Signatures, tuple[str, ...]]:
    """What of it is true of this very enclave."""
    pcrs, refused = attested.pcrs, list[str]()

    def holds(what: str, event: Event) -> bool:
        try:
            match what:
                case "build":
                    verify_builder_signature(event, pcrs, now)
                case "instance":
                    verify_launcher_signature(event, pcrs)
                case _:
                    _check_release(event, attested, policy)
        except BadInput as error:
            refused.append(f"{what}: {error}")
            return False
        return True

    builder = meta.builder if meta.builder and holds("build", meta.builder) else None
    launcher = meta.launcher if meta.launcher and holds("instance", meta.launcher) else None
    releases = tuple(event for event in meta.releases if holds("release", event))
    return Signatures(builder, launcher, releases), tuple(refused)


def _check_release(event: Event, attested: Attested, policy: ReleasePolicy) -> None:
    release = verify_release_signature(event, attested.pcrs)
    if release.repo != policy.repo:
        raise BadMeta("it is for another repository than the image's own")
    if release.maintainer not in policy.maintainers:
        raise BadMeta("it is by somebody whom the image does not name")


def _problem(
    env: Env,
    signatures: Signatures,
    policy: ReleasePolicy,
    document: bytes,
    attested: Attested,
    key: SecretKey,
    verifier: Verifier,
    now: int,
) -> str:
    """Why strangers would not believe our announcement; empty when they would."""
    event = build_root(key, document, env, attested.not_after, now)
    try:
        root = verify_root(event.json.decode(), verifier, now)
    except BadInput as error:
        return str(error)
    facts = InstanceFacts("self", "", "", policy.repo, (), False, 0, 0, 0, 0)
    announcement = build_announcement(key, facts, root, signatures, now)
    policies = [DebugPolicy(allowed=env is not Env.PROD)]
    if env is Env.PROD:
        expected = ExpectedMaintainers(frozenset(policy.maintainers))
        verdict, _ = verify_announcement(
            announcement, verifier, now, [*policies, ExpectedRepo(policy.repo), expected]
        )
    else:
        verdict, _ = verify_announcement(announcement, verifier, now, policies)
    return verdict.reason
