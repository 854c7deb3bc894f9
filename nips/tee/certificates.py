"""Certificates (23797): one key inside the enclave vouches for another, from the root to the author.

root (the instance's attested key) → container, running this image → app, living in that container.
Each link names one subject and one role, lives three hours at most, and never longer than the root.
"""

import re
from dataclasses import dataclass
from enum import Enum

from nips import kinds
from nips.crypto import is_pubkey
from nips.errors import BadCertificate
from nips.event import (
    Event,
    Tag,
    VerifiedEvent,
    parse_event_json_untrusted,
    sign_event,
    verify_event,
)
from nips.keys import SecretKey
from nips.nip40 import expiration_of, is_expired
from nips.tee.attestation import Verifier
from nips.tee.lifetime import CLOCK_SKEW_S, check_begun
from nips.tee.nec01 import Root, verify_root

LIFETIME_S = 3 * 3600
_IMAGE = re.compile(r"docker://[A-Za-z0-9._:/-]{1,400}@sha256:[0-9a-f]{64}")


class Role(Enum):
    """What the subject is; the order in which roles may follow each other is `_ORDER`."""

    CONTAINER = "container"
    APP = "app"


_ORDER = (Role.CONTAINER, Role.APP)


@dataclass(frozen=True)
class Certificate:
    """A link that verified. ``image`` (``docker://name@sha256:…``) stands in a container's only."""

    issuer: str
    subject: str
    role: Role
    image: str | None
    expiration: int


@dataclass(frozen=True)
class Certified:
    """Who wrote an event, as far as the enclave vouches for it. Valid until ``not_after``."""

    root: Root
    certificates: tuple[Certificate, ...]

    @property
    def not_after(self) -> int:
        """The earliest end of anything in the chain, Unix seconds."""
        ends = [certificate.expiration for certificate in self.certificates]
        return min([self.root.attested.not_after, expiration_of(self.root.event) or 0, *ends])

    @property
    def path(self) -> str:
        """Who vouches for whom, such as ``instance → container → app``."""
        return " → ".join(["instance", *(link.role.value for link in self.certificates)])

    @property
    def image(self) -> str | None:
        """The image that the container among them runs."""
        return next((c.image for c in self.certificates if c.image is not None), None)


def build_certificate(
    issuer: SecretKey,
    subject: str,
    role: Role,
    now: int,
    *,
    image: str | None = None,
    not_after: int,
) -> VerifiedEvent:
    """``image`` is pinned (``name@sha256:…``); the life is cut at ``not_after``, the end of the root."""
    tags: list[Tag] = [
        ("p", subject, role.value),
        ("expiration", str(min(now + LIFETIME_S, not_after))),
        ("alt", f"enclaved {role.value} certificate"),
    ]
    if image is not None:
        tags.append(("r", f"docker://{image}"))
    return sign_event(issuer, kinds.CERTIFICATE, "", tags, now)


def verify_certificate(event: Event, now: int) -> Certificate:
    """One link by itself. Raises `BadInput`."""
    if event.kind != kinds.CERTIFICATE:
        raise BadCertificate("a certificate is not of kind 23797")
    verify_event(event)
    subjects = [tag for tag in event.tags if tag[0] == "p"]
    if len(subjects) != 1 or len(subjects[0]) < 3 or not is_pubkey(subjects[0][1]):
        raise BadCertificate("a certificate does not name exactly one subject and its role")
    expiration = expiration_of(event)
    if expiration is None or expiration <= now:
        raise BadCertificate("a certificate has expired, or never says when it does")
    check_begun("a certificate", event.created_at, now, BadCertificate)
    if expiration > event.created_at + LIFETIME_S + CLOCK_SKEW_S:
        raise BadCertificate("a certificate claims to live for more than three hours")
    role = _role(subjects[0][2])
    return Certificate(event.pubkey, subjects[0][1], role, _image_of(event, role), expiration)


def verify_certified(event: Event, verifier: Verifier, now: int) -> Certified:
    """An event and all that ties its author to the enclave, from its own tags. Raises `BadInput`."""
    check_is_current(event, now)
    root = verify_root(only_tag(event, "tee_root"), verifier, now)
    texts = event.tag_values("tee_cert")
    if len(texts) > len(_ORDER):
        raise BadCertificate("there are more certificates than roles")
    certificates = tuple(verify_certificate(parse_event_json_untrusted(t), now) for t in texts)
    holder, known = root.pubkey, {root.pubkey}
    for certificate, role in zip(certificates, _ORDER, strict=False):
        if certificate.issuer != holder:
            raise BadCertificate("the chain of certificates has a gap")
        if certificate.role is not role:
            raise BadCertificate(f"a certificate makes a {certificate.role.value} out of turn")
        if certificate.subject in known:
            raise BadCertificate("the chain of certificates has a loop")
        holder = certificate.subject
        known.add(holder)
    if holder != event.pubkey:
        raise BadCertificate("the chain of certificates ends in another key than the author's")
    return Certified(root, certificates)


def check_is_current(event: Event, now: int) -> None:
    """Authentic, not from the future, not expired by its own word. Raises `BadInput`."""
    verify_event(event)
    check_begun("the event", event.created_at, now, BadCertificate)
    if is_expired(event, now):
        raise BadCertificate("the event has expired")


def only_tag(event: Event, name: str) -> str:
    """The value of a tag that must stand exactly once: readers must not differ in which they take."""
    values = event.tag_values(name)
    if len(values) != 1:
        raise BadCertificate(f"there is not exactly one {name}")
    return values[0]


def _image_of(event: Event, role: Role) -> str | None:
    match role, event.tag_values("r"):
        case Role.CONTAINER, [image] if _IMAGE.fullmatch(image):
            return image
        case Role.APP, []:
            return None
        case Role.CONTAINER, _:
            # A tag can be moved to other code after the fact; a digest cannot.
            raise BadCertificate("a container's certificate does not name its image by digest")
        case _:
            raise BadCertificate("an app's certificate names an image")


def _role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        raise BadCertificate("a certificate names an unknown role") from None
