"""What maintainers do: sign an image or an enclave's measurements, publish a release, check who signed.

An image is named by its reference: labels and config digest come from its registry. An enclave image is named
by a file of its measurements (``{"PCR0": …, "PCR1": …, "PCR2": …}``, as ``nitro-cli`` prints them).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bot.adapters.oci_registry import OciRegistry
from bot.adapters.relay_events import RelayEvents
from bot.tools.report import say_silent
from bot.tools.signer import Signer
from handlers.commands.release import ReleaseReport, check_release, read_labels
from handlers.domain.image import ImageRef
from handlers.ports import ImageProblem, ResolvedImage
from nips import kinds
from nips.errors import BadInput
from nips.event import Event, VerifiedEvent
from nips.filters import Filter
from nips.tee.attestation import PCR_BYTES, Pcrs
from nips.tee.env import Env
from nips.tee.image_release import (
    ImageIdentity,
    image_tags,
    release_announcement_tags,
    verify_image_signature,
)
from nips.tee.nec05 import MEASURED, release_tags


class CannotRelease(Exception):
    """The image or the measurements cannot be signed or published; the message says what to change."""


@dataclass(frozen=True)
class Maintenance:
    """Where images and events are found; ``relay_urls`` beside those that an image names."""

    registry: OciRegistry
    relays: RelayEvents
    relay_urls: tuple[str, ...] = ()

    async def resolve(self, ref: ImageRef) -> ResolvedImage:
        """Raises `CannotRelease`."""
        found = await self.registry.resolve(ref)
        if isinstance(found, ImageProblem):
            raise CannotRelease(f"{ref}: {found.text}")
        return found

    async def check(self, ref: ImageRef) -> ReleaseReport:
        """Who signed it, by its own labels. Raises `CannotRelease` when that cannot be told."""
        heard = _Heard(self.relays)
        report = await check_release(heard, await self.resolve(ref), self.relay_urls)
        if heard.silent and not report.verdict.is_signed_by_all:
            raise CannotRelease(
                f"{ref}: whether all signed it is unknown: {say_silent(heard.silent)}"
            )
        return report

    async def sign_image(
        self, ref: ImageRef, signer: Signer, *, is_prod: bool, now: int
    ) -> tuple[VerifiedEvent, tuple[str, ...]]:
        """A 63795 event, and the relays to publish it on."""
        found = await self.resolve(ref)
        labels = read_labels(found.labels)
        pubkey = await signer.pubkey()
        if pubkey not in labels.signers:
            raise CannotRelease(f"the image's label `signers` does not name you ({pubkey})")
        image = identity_of(found, is_prod=is_prod)
        return await signer.sign(
            kinds.IMAGE_SIGNATURE, "", image_tags(image), now
        ), labels.relay_urls

    async def announce_image(
        self, ref: ImageRef, signer: Signer, *, is_prod: bool, now: int
    ) -> tuple[VerifiedEvent, tuple[str, ...]]:
        """A 63796 event with every signer's signature inside, and the relays to publish it on."""
        found = await self.resolve(ref)
        labels = read_labels(found.labels)
        image = identity_of(found, is_prod=is_prod)
        wanted = Filter(
            kinds=frozenset({kinds.IMAGE_SIGNATURE}),
            authors=frozenset(labels.signers),
            tags={"r": frozenset({image.repo})},
        )
        urls = [*labels.relay_urls, *self.relay_urls]
        heard = _Heard(self.relays)
        signed = _by_signer(await heard.find([wanted], urls), image)
        missing = [pubkey for pubkey in labels.signers if pubkey not in signed]
        if missing or not labels.signers:
            whom = ", ".join(missing) or "anybody: the image names no signers"
            told = [f"not signed by {whom}", *([say_silent(heard.silent)] if heard.silent else [])]
            raise CannotRelease("; ".join(told))
        tags = release_announcement_tags(image, [signed[p] for p in labels.signers])
        return await signer.sign(kinds.IMAGE_RELEASE, "", tags, now), labels.relay_urls


class _Heard:
    """`handlers.ports.Events`, and which relays were not heard: a signature there is not a missing one."""

    def __init__(self, relays: RelayEvents) -> None:
        self._relays = relays
        self.silent: tuple[str, ...] = ()

    async def find(
        self, filters: Sequence[Filter], relay_urls: Sequence[str]
    ) -> list[VerifiedEvent]:
        found = await self._relays.search(filters, relay_urls)
        self.silent += found.silent
        return list(found.events)


def identity_of(found: ResolvedImage, *, is_prod: bool) -> ImageIdentity:
    """What is signed of an image. Raises `CannotRelease` when its labels do not say."""
    labels = read_labels(found.labels)
    if not labels.repo or not labels.version:
        raise CannotRelease("the image needs the labels `repo` and `version`")
    reference = found.ref.pinned(found.digest)
    return ImageIdentity(labels.repo, found.image_id, labels.version, reference, is_prod)


def _by_signer(events: Sequence[Event], image: ImageIdentity) -> dict[str, Event]:
    signed: dict[str, Event] = {}
    for event in events:
        try:
            if verify_image_signature(event).image.is_same_as(image):
                signed[event.pubkey] = event
        except BadInput:
            continue
    return signed


async def sign_measurements(
    pcrs: Pcrs, signer: Signer, *, repo: str, version: str, is_prod: bool, now: int
) -> VerifiedEvent:
    """A 63794 event over PCR0, PCR1 and PCR2. Raises `CannotRelease`."""
    if not repo or not version:
        raise CannotRelease("measurements are signed with --repo and --version")
    env = Env.PROD if is_prod else Env.DEV
    tags = release_tags(pcrs, repo=repo, version=version, env=env)
    return await signer.sign(kinds.RELEASE, "", tags, now)


def read_measurements(path: Path) -> Pcrs:
    """Raises `CannotRelease`."""
    try:
        value: object = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CannotRelease(f"{path}: {error}") from error
    if isinstance(value, dict) and isinstance(value.get("Measurements"), dict):
        value = value["Measurements"]
    pcrs: dict[int, bytes] = {}
    for index in MEASURED:
        text = value.get(f"PCR{index}") if isinstance(value, dict) else None
        try:
            pcrs[index] = bytes.fromhex(text if isinstance(text, str) else "")
        except ValueError:
            pcrs[index] = b""
        if len(pcrs[index]) != PCR_BYTES or not any(pcrs[index]):
            raise CannotRelease(
                f"{path}: PCR{index} is not {2 * PCR_BYTES} hex digits, or is zero"
            )
    return Pcrs(pcrs)
