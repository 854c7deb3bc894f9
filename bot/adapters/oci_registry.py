"""Reads images' documents from any OCI or Docker registry: a reference becomes a digest, sizes and labels.

A registry is a stranger: every document's digest is computed from the bytes that came, and JSON enters as
`object` and leaves as a `Manifest`, or as a refusal with a reason.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import orjson
import trio

from bot.adapters.layer import Layer
from bot.adapters.places import Bounds, Busy, Places
from bot.adapters.registry_client import (
    Blob,
    Broken,
    Refused,
    RegistryClient,
    RegistryConfig,
    TooSlow,
)
from handlers.domain.image import ImageRef
from handlers.domain.ports_pool import MAX_PORTS_PER_CONTAINER
from handlers.ports import ImageProblem, ResolvedImage

MAX_LAYERS = 128
MAX_LABELS = 65_536
# A line of questions, and the answer to one.
WAIT_S, RESOLVE_S = 10, 20
QUESTIONS = Bounds(in_all=32, by_host=8, by_caller=2, waiting=64, waiting_by_caller=4)
_INDEX = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
_MANIFEST = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
_ACCEPT = ", ".join(sorted(_INDEX | _MANIFEST))
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PORTS = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?(?:/(tcp|udp))?")
_NO_IMAGE = "the registry answers something that is no image"


@dataclass(frozen=True)
class Manifest:
    """An image for linux/amd64, all of it but its layers. ``config`` is the document that the image id names."""

    resolved: ResolvedImage
    config: bytes
    layers: tuple[Layer, ...]


class OciRegistry:
    """`handlers.ports.Registry`."""

    def __init__(self, config: RegistryConfig, questions: Bounds = QUESTIONS) -> None:
        self._client = RegistryClient(config)
        self._places = Places(questions)

    async def resolve(self, ref: ImageRef, caller: str = "") -> ResolvedImage | ImageProblem:
        has_place = False
        try:
            with trio.move_on_after(WAIT_S) as limit:
                async with self._places.take(ref.host, caller):
                    has_place, limit.deadline = True, trio.current_time() + RESOLVE_S
                    resolved = (await self.manifest(ref)).resolved
                    self._places.answered(ref.host)
                    return resolved
        except Busy as busy:
            return ImageProblem(f"{busy}; retry in a moment", permanent=False)
        except Refused as refused:
            if isinstance(refused, Broken | TooSlow):
                self._places.failed(ref.host)
            return ImageProblem(str(refused), refused.permanent)
        if not has_place:
            return ImageProblem("too many wait for that registry; retry later", permanent=False)
        self._places.failed(ref.host)
        return ImageProblem("the registry is too slow; retry later", permanent=False)

    async def manifest(self, ref: ImageRef) -> Manifest:
        """Raises `Refused`."""
        document, digest, kind = await self._document(ref, ref.wanted)
        if kind in _INDEX:
            digest = _linux_amd64(document)
            document, digest, kind = await self._document(ref, digest)
        if kind not in _MANIFEST:
            raise Refused("the manifest is of an unknown kind")
        raw, _, _ = await self._raw(ref, "blobs", _config_digest(document))
        return _manifest(ref, digest, document, raw)

    def blob(self, ref: ImageRef, digest: str, offset: int) -> AbstractAsyncContextManager[Blob]:
        """See `RegistryClient.blob`."""
        return self._client.blob(ref, digest, offset)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _document(self, ref: ImageRef, name: str) -> tuple[dict[str, Any], str, str]:
        raw, digest, content_type = await self._raw(ref, "manifests", name)
        document = _object(raw)
        return document, digest, str(document.get("mediaType") or content_type)

    async def _raw(self, ref: ImageRef, what: str, name: str) -> tuple[bytes, str, str]:
        raw, content_type = await self._client.document(ref, f"{what}/{name}", _ACCEPT)
        digest = _digest_of(raw)
        if name.startswith("sha256:") and digest != name:
            raise Refused("the registry sent something else than the digest names")
        return raw, digest, content_type


def _digest_of(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def _object(raw: bytes) -> dict[str, Any]:
    """A JSON object; orjson refuses what is nested too deep (the standard library's reader would overflow)."""
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refused(_NO_IMAGE) from error
    if not isinstance(document, dict):
        raise Refused(_NO_IMAGE)
    return document


def _manifest(ref: ImageRef, digest: str, document: dict[str, Any], raw: bytes) -> Manifest:
    try:
        return _manifest_untrusted(ref, digest, document, raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(_NO_IMAGE) from error


def _manifest_untrusted(
    ref: ImageRef, digest: str, document: dict[str, Any], raw: bytes
) -> Manifest:
    config = _object(raw)
    if (config.get("os"), config.get("architecture")) != ("linux", "amd64"):
        raise Refused("the image is not for linux/amd64")
    settings = config.get("config") or {}
    if not settings.get("Entrypoint") and not settings.get("Cmd"):
        raise Refused("the image has neither ENTRYPOINT nor CMD, so nothing would run")
    layers = _layers(document["layers"], config["rootfs"]["diff_ids"])
    resolved = ResolvedImage(
        ref=ref,
        digest=digest,
        image_id=_digest_of(raw).removeprefix("sha256:"),
        compressed_bytes=sum(layer.size_bytes for layer in layers),
        labels=_labels(settings.get("Labels") or {}),
        ports=_ports(settings.get("ExposedPorts") or {}),
        volumes=_volumes(settings.get("Volumes") or {}),
    )
    return Manifest(resolved, raw, layers)


def _labels(given: dict[str, Any]) -> dict[str, str]:
    """The engine repeats them for every container in every list that we ask of it."""
    labels = {str(name): str(value) for name, value in given.items()}
    if sum(len(name) + len(value) for name, value in labels.items()) > MAX_LABELS:
        raise Refused(f"the image's labels have more than {MAX_LABELS} characters")
    return labels


def _config_digest(document: dict[str, Any]) -> str:
    try:
        return _digest(document["config"]["digest"])
    except (KeyError, TypeError) as error:
        raise Refused(_NO_IMAGE) from error


def _linux_amd64(index: dict[str, Any]) -> str:
    """The manifest for our platform, by preference one for its every variant; attestations are for none."""
    entries = index.get("manifests")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Refused(_NO_IMAGE)
    platforms = [(entry, entry.get("platform")) for entry in entries]
    if entries and not any(platform for _, platform in platforms):
        raise Refused("the index does not say for which platforms its images are")
    fitting = [
        (bool(platform.get("variant")), _digest(entry.get("digest")))
        for entry, platform in platforms
        if isinstance(platform, dict)
        and (platform.get("os"), platform.get("architecture")) == ("linux", "amd64")
        and entry.get("mediaType") in _MANIFEST
    ]
    if not fitting:
        raise Refused("there is no image for linux/amd64")
    return min(fitting, key=lambda one: one[0])[1]


def _layers(listed: list[Any], diff_ids: list[Any]) -> tuple[Layer, ...]:
    if len(listed) > MAX_LAYERS:
        raise Refused(f"the image has more than {MAX_LAYERS} layers")
    if len(listed) != len(diff_ids):
        raise Refused("the image's manifest and config do not name the same layers")
    return tuple(
        Layer(_digest(layer["digest"]), _size(layer), _digest(diff_id))
        for layer, diff_id in zip(listed, diff_ids, strict=True)
    )


def _digest(value: object) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise Refused("the image names something by another digest than SHA-256")
    return value


def _size(layer: dict[str, Any]) -> int:
    size = layer.get("size")
    if type(size) is not int or size < 0:
        raise Refused("a layer has no size")
    return size


def _ports(exposed: dict[str, Any]) -> tuple[str, ...]:
    """``8080/tcp``, also out of ranges; one more than a container may have is enough to refuse the image."""
    found: set[str] = set()
    for text in exposed:
        for port in _range(str(text)):
            found.add(port)
            if len(found) > MAX_PORTS_PER_CONTAINER:
                break
    return tuple(sorted(found))


def _range(text: str) -> Iterator[str]:
    matched = _PORTS.fullmatch(text)
    if matched is not None:
        first, last = int(matched[1]), int(matched[2] or matched[1])
        for port in range(first, min(last, 65_535) + 1):
            yield f"{port}/{matched[3] or 'tcp'}"


def _volumes(declared: dict[str, Any]) -> tuple[str, ...]:
    for path in declared:
        if (
            not path.startswith("/")
            or path == "/"
            or ".." in path.split("/")
            or ":" in path
            or len(path) > 256
        ):
            raise Refused("the image declares a volume at a path that is not allowed")
    return tuple(sorted(declared))
