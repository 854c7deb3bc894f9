"""``release``: who signed an image? From the image's labels and the signers' own relays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.context import Caller, Context
from handlers.domain.image import ImageRef
from handlers.domain.release import Claim, ReleaseVerdict, is_newer, judge, newest_by_all
from handlers.errors import Code, Refusal
from handlers.params import IMAGE, param
from handlers.ports import Events, ImageProblem, ResolvedImage
from nips import kinds
from nips.crypto import is_pubkey
from nips.errors import BadInput
from nips.event import Event
from nips.filters import Filter
from nips.relay_url import parse_relay_url_untrusted
from nips.tee.image_release import ImageSignature, verify_image_release, verify_image_signature

MAX_SIGNERS, MAX_RELAYS = 16, 5
MAX_EVENTS = 500


@dataclass(frozen=True)
class ReleaseParams:
    """The image."""

    docker: ImageRef = param(IMAGE)


@dataclass(frozen=True)
class Labels:
    """The labels of an image that take part in releases."""

    signers: tuple[str, ...]
    repo: str
    version: str
    relay_urls: tuple[str, ...]


@dataclass(frozen=True)
class ReleaseReport:
    """What was found. ``newer``: a version that all signers signed and that is newer than this one."""

    labels: Labels
    image_id: str
    verdict: ReleaseVerdict
    newer: str | None


async def release(ctx: Context, caller: Caller, params: ReleaseParams) -> dict[str, Any] | Refusal:
    """Resolve the image, then ask the relays that it names for its signers' words."""
    found = await ctx.registry.resolve(params.docker, caller.pubkey)
    if isinstance(found, ImageProblem):
        return image_refusal(params.docker, found)
    report = await check_release(ctx.events, found)
    return {"image": params.docker.pinned(found.digest), **release_result(report)}


def image_refusal(ref: ImageRef, problem: ImageProblem) -> Refusal:
    """Why an image cannot be had, as an answer to its asker."""
    code = Code.INVALID if problem.permanent else Code.UNAVAILABLE
    return Refusal(code, f"{ref}: {problem.text}")


async def check_release(
    events: Events, found: ResolvedImage, also: Sequence[str] = ()
) -> ReleaseReport:
    """Asks the image's own relays and those in ``also``; nobody when the image names no signers."""
    labels = read_labels(found.labels)
    claims: list[Claim] = []
    relay_urls = [*labels.relay_urls, *also]
    if labels.signers and labels.repo and relay_urls:
        claims = claims_of(await events.find([_wanted(labels)], relay_urls))
    image = Claim("", labels.repo, found.image_id, labels.version)
    verdict = judge(image, labels.signers, claims)
    newest = newest_by_all(labels.repo, labels.signers, claims)
    newer = newest if newest is not None and is_newer(newest, labels.version) else None
    return ReleaseReport(labels, found.image_id, verdict, newer)


def _wanted(labels: Labels) -> Filter:
    return Filter(
        kinds=frozenset({kinds.IMAGE_SIGNATURE, kinds.IMAGE_RELEASE}),
        authors=frozenset(labels.signers),
        tags={"r": frozenset({labels.repo})},
        limit=MAX_EVENTS,
    )


def claims_of(found: Sequence[Event]) -> list[Claim]:
    """Signatures that hold, from 63795 events and from those inside 63796."""
    signatures: list[ImageSignature] = []
    for event in found[:MAX_EVENTS]:
        try:
            if event.kind == kinds.IMAGE_RELEASE:
                signatures += verify_image_release(event).signatures
            else:
                signatures.append(verify_image_signature(event))
        except BadInput:
            continue
    facts = {(s.signer, s.image.repo, s.image.image_id, s.image.version) for s in signatures}
    return [Claim(*fact) for fact in sorted(facts)]


def read_labels(labels: Mapping[str, str]) -> Labels:
    """A stranger's labels: what does not parse is left out, so that nothing unchecked is believed."""
    signers = [part.strip() for part in labels.get("signers", "").split(",")]
    relays = [part.strip() for part in labels.get("signer_relays", "").split(",")]
    return Labels(
        tuple(dict.fromkeys(s for s in signers[:MAX_SIGNERS] if is_pubkey(s))),
        labels.get("repo", "")[:256],
        labels.get("version", "")[:64],
        tuple(url for url in map(_relay_url, relays[:MAX_RELAYS]) if url),
    )


def _relay_url(text: str) -> str:
    try:
        return parse_relay_url_untrusted(text)
    except BadInput:
        return ""


def release_result(report: ReleaseReport) -> dict[str, Any]:
    """The JSON of a report."""
    return {
        "repo": report.labels.repo or None,
        "version": report.labels.version or None,
        "image_id": report.image_id,
        "signers": [{"pubkey": s.pubkey, "says": s.signed.value} for s in report.verdict.signers],
        "signed_by_all": report.verdict.is_signed_by_all,
        "newer": report.newer,
    }


def tell_release(result: dict[str, Any]) -> str:
    """The report in words."""
    return f"{result['image']}: {tell_signers(result)}"


def tell_signers(result: dict[str, Any]) -> str:
    """One sentence on signatures, also for quotes."""
    if not result["signers"]:
        return "nobody is named who would sign it."
    signed = sum(signer["says"] == "signed" for signer in result["signers"])
    newer = f" Version {result['newer']} is newer." if result["newer"] else ""
    return f"signed by {signed} of {len(result['signers'])} signers named in it.{newer}"
