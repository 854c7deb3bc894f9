"""Signatures over container images: 63795 by each signer, gathered in a 63796 announcement.

``x`` is the digest of the image's *config* (hex, no prefix): the same for every registry and compression.
63795 once meant a builder's signature; what carries a ``cert`` is not read here.
"""

import re
from dataclasses import dataclass

from nips import kinds
from nips.errors import BadCertificate, BadInput
from nips.event import Event, Tag, parse_event_json_untrusted, verify_event
from nips.tee.env import Env, signs_for

MAX_SIGNATURES = 16
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ImageIdentity:
    """What is signed. ``image_id``: 64 hex digits; ``reference``: where it can be pulled."""

    repo: str
    image_id: str
    version: str
    reference: str | None
    is_prod: bool

    def is_same_as(self, other: "ImageIdentity") -> bool:
        """The very same image as the same release; where it can be pulled plays no part."""
        return (self.repo, self.image_id, self.version, self.is_prod) == (
            other.repo, other.image_id, other.version, other.is_prod,
        )  # fmt: skip


@dataclass(frozen=True)
class ImageSignature:
    """One signer's word for one image."""

    signer: str
    image: ImageIdentity


@dataclass(frozen=True)
class ImageRelease:
    """An announced release; only signatures over the very same image are kept."""

    image: ImageIdentity
    signatures: tuple[ImageSignature, ...]


def image_tags(image: ImageIdentity) -> list[Tag]:
    """The tags of a 63795 or 63796."""
    tags: list[Tag] = [("r", image.repo), ("x", image.image_id), ("v", image.version)]
    if image.reference is not None:
        tags.append(("u", image.reference))
    return [*tags, ("t", (Env.PROD if image.is_prod else Env.DEV).value)]


def release_announcement_tags(image: ImageIdentity, signatures: list[Event]) -> list[Tag]:
    """The tags of a 63796 around its 63795 events."""
    return [*image_tags(image), *(("release", event.json.decode()) for event in signatures)]


def verify_image_signature(event: Event) -> ImageSignature:
    """Raises `BadInput`."""
    if event.kind != kinds.IMAGE_SIGNATURE or event.has_tag("cert"):
        raise BadCertificate("the event is no signature over an image")
    verify_event(event)
    return ImageSignature(event.pubkey, _image(event))


def verify_image_release(event: Event) -> ImageRelease:
    """Raises `BadInput`. A signature in it that does not hold is left out, not believed."""
    if event.kind != kinds.IMAGE_RELEASE or event.has_tag("PCR4"):
        raise BadCertificate("the event is no release of an image")
    verify_event(event)
    image, texts = _image(event), event.tag_values("release")
    if len(texts) > MAX_SIGNATURES:
        raise BadCertificate(f"a release carries more than {MAX_SIGNATURES} signatures")
    signatures = (_signature_untrusted(text, image) for text in texts)
    return ImageRelease(image, tuple(s for s in signatures if s is not None))


def _signature_untrusted(text: str, image: ImageIdentity) -> ImageSignature | None:
    try:
        signature = verify_image_signature(parse_event_json_untrusted(text))
    except BadInput:
        return None
    return signature if signature.image.is_same_as(image) else None


def _image(event: Event) -> ImageIdentity:
    repo, image_id, version = (event.tag(name) for name in ("r", "x", "v"))
    if not repo or not version or not _DIGEST.fullmatch(image_id or ""):
        raise BadCertificate("a signature over an image lacks r, x or v")
    return ImageIdentity(
        repo, image_id or "", version, event.tag("u"), is_prod=Env.PROD in signs_for(event)
    )
