"""NEC-05: a maintainer's signature (63794; older 63792) over a release, named by PCR0, PCR1 and PCR2."""

from dataclasses import dataclass

from nips import kinds
from nips.errors import BadCertificate
from nips.event import Event, VerifiedEvent, sign_event, verify_event
from nips.keys import SecretKey
from nips.tee.attestation import Pcrs
from nips.tee.env import Env, signs_for

# Together they cover the image; PCR0 alone does not say where the kernel ends (no separators).
MEASURED = (0, 1, 2)


@dataclass(frozen=True)
class Release:
    """A maintainer's word: these measurements are that repository's release, fit for these uses."""

    maintainer: str
    repo: str
    version: str | None
    envs: frozenset[Env]


def build_release_signature(
    key: SecretKey, pcrs: Pcrs, *, repo: str, version: str, env: Env, now: int
) -> VerifiedEvent:
    """The 63794 event."""
    return sign_event(
        key, kinds.RELEASE, "", release_tags(pcrs, repo=repo, version=version, env=env), now
    )


def release_tags(pcrs: Pcrs, *, repo: str, version: str, env: Env) -> list[tuple[str, ...]]:
    """The tags of a 63794, for signers that keep their key elsewhere."""
    tags: list[tuple[str, ...]] = [("r", repo), ("t", env.value), ("v", version)]
    tags += [("x", pcrs.values[index].hex(), f"PCR{index}") for index in MEASURED]
    return [*tags, ("alt", "enclave release signature")]


def measured_tag(event: Event, index: int) -> str | None:
    """The ``x`` tag with the marker of that register; the only one, or None."""
    found = [t[1] for t in event.tags if len(t) > 2 and t[0] == "x" and t[2] == f"PCR{index}"]
    return found[0] if len(found) == 1 else None


def verify_release_signature(event: Event, pcrs: Pcrs) -> Release:
    """Raises `BadInput`. Whether that maintainer or repository is the right one is a policy's business."""
    if event.kind not in (kinds.RELEASE, kinds.OLD_RELEASE):
        raise BadCertificate("release is not a release signature")
    verify_event(event)
    # Older ones have a tag of each register's name, and no x at all.
    is_old = not event.has_tag("x")
    for index in MEASURED:
        measured = event.tag(f"PCR{index}") if is_old else measured_tag(event, index)
        if measured is None or measured != pcrs.hex(index):
            raise BadCertificate(f"the release is for another PCR{index}")
    match event.tag_values("r"):
        case [repo] if repo:
            return Release(event.pubkey, repo, event.tag("v"), signs_for(event))
        case _:
            raise BadCertificate("the release does not name exactly one repository")
