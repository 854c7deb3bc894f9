"""Reads manifests from any OCI or Docker registry: a reference becomes a digest, sizes and labels.

A registry is a stranger: every document is bounded in size and time, its digest is computed from the
bytes that came, and redirects and token realms are followed only to public addresses and never
together with the credentials of another host.
"""

import base64
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import httpcore
import trio

from bot.adapters.guarded_network import GuardedBackend
from handlers.domain.image import DOCKER_HUB, ImageRef
from handlers.ports import ImageProblem, ResolvedImage

MAX_DOCUMENT_BYTES = 4 << 20
MAX_REDIRECTS = 5
MAX_LAYERS = 128
RESOLVE_S = 30
MAX_AT_ONCE = 16
MAX_CHALLENGE, MAX_TOKEN, MAX_TOKENS = 2_048, 16_384, 256
_CHALLENGE = re.compile(r'(?<!\w)(\w{1,32})="([^"]*)"')
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
_PORT = re.compile(r"([1-9][0-9]{0,4})/(tcp|udp)")


@dataclass(frozen=True)
class RegistryConfig:
    """``plain_http`` lists ``host:port`` that are spoken to without TLS and may be private addresses."""

    plain_http: tuple[str, ...] = ()
    # host -> "user:password"
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)


class _Refused(Exception):
    """Why a reference cannot be resolved; caught in `resolve` only."""

    def __init__(self, text: str, *, permanent: bool = True) -> None:
        super().__init__(text)
        self.permanent = permanent


class OciRegistry:
    """`handlers.ports.Registry`."""

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._pool = httpcore.AsyncConnectionPool(
            network_backend=GuardedBackend(config.plain_http),
            max_connections=16,
            keepalive_expiry=30,
        )
        self._tokens: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._at_once = trio.CapacityLimiter(MAX_AT_ONCE)

    async def resolve(self, ref: ImageRef) -> ResolvedImage | ImageProblem:
        try:
            with trio.fail_after(RESOLVE_S):
                async with self._at_once:
                    return await self._resolve(ref)
        except _Refused as refused:
            return ImageProblem(str(refused), refused.permanent)
        except (
            httpcore.NetworkError,
            httpcore.TimeoutException,
            httpcore.ProtocolError,
            trio.TooSlowError,
        ) as error:
            return ImageProblem(
                f"the registry cannot be reached: {str(error) or 'timeout'}", permanent=False
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return ImageProblem("the registry answers something that is no image", permanent=True)

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def _resolve(self, ref: ImageRef) -> ResolvedImage:
        document, digest, kind = await self._document(ref, "manifests", ref.wanted)
        if kind in _INDEX:
            digest = _linux_amd64(document)
            document, digest, kind = await self._document(ref, "manifests", digest)
        if kind not in _MANIFEST:
            raise _Refused("the manifest is of an unknown kind")
        layers = document["layers"]
        if len(layers) > MAX_LAYERS:
            raise _Refused(f"the image has more than {MAX_LAYERS} layers")
        config, config_digest, _ = await self._document(
            ref, "blobs", str(document["config"]["digest"])
        )
        if (config.get("os"), config.get("architecture")) != ("linux", "amd64"):
            raise _Refused("the image is not for linux/amd64")
        settings = config.get("config") or {}
        return ResolvedImage(
            ref=ref,
            digest=digest,
            image_id=config_digest.removeprefix("sha256:"),
            compressed_bytes=sum(_size(layer) for layer in layers),
            labels={str(k): str(v) for k, v in (settings.get("Labels") or {}).items()},
            ports=_ports(settings.get("ExposedPorts") or {}),
            volumes=_volumes(settings.get("Volumes") or {}),
        )

    async def _document(
        self, ref: ImageRef, what: str, name: str
    ) -> tuple[dict[str, Any], str, str]:
        raw, content_type = await self._get(ref, f"/v2/{ref.repository}/{what}/{name}")
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if name.startswith("sha256:") and digest != name:
            raise _Refused("the registry sent something else than the digest names")
        document = json.loads(raw)
        if not isinstance(document, dict):
            raise _Refused("the registry answers something that is no image")
        return document, digest, str(document.get("mediaType") or content_type)

    async def _get(self, ref: ImageRef, path: str) -> tuple[bytes, str]:
        url = f"{self._scheme(ref.host)}://{_api_host(ref.host)}{path}"
        headers = {"Accept": _ACCEPT}
        authorization = self._tokens.get((ref.host, ref.repository))
        status, answer_headers, body = await self._fetch(url, headers, authorization)
        if status == 401:
            authorization = await self._authorize(ref, answer_headers.get("www-authenticate", ""))
            status, answer_headers, body = await self._fetch(url, headers, authorization)
        if status in (401, 403, 404):
            raise _Refused("there is no such image, or it is private")
        if status != 200:
            raise _Refused(f"the registry answers {status}", permanent=False)
        return body, answer_headers.get("content-type", "").partition(";")[0]

    async def _authorize(self, ref: ImageRef, challenge: str) -> str:
        scheme, _, rest = challenge.partition(" ")
        credentials = self._config.credentials.get(ref.host)
        basic = f"Basic {base64.b64encode(credentials.encode()).decode()}" if credentials else None
        if scheme.lower() == "basic" and basic is not None:
            return basic
        if scheme.lower() != "bearer":
            raise _Refused("the registry wants credentials")
        if len(rest) > MAX_CHALLENGE:
            raise _Refused("the registry's challenge is too long")
        asked = dict(_CHALLENGE.findall(rest))
        realm = asked.get("realm", "")
        if (
            not realm.startswith("https://")
            and urlsplit(realm).netloc not in self._config.plain_http
        ):
            raise _Refused("the registry sends us to an unprotected token server")
        query = {"service": asked.get("service", ""), "scope": f"repository:{ref.repository}:pull"}
        # Credentials go to the realm that the registry itself names, as the token protocol has it.
        status, _, body = await self._fetch(f"{realm}?{urlencode(query)}", {}, basic)
        if status != 200:
            raise _Refused("the registry's token server refuses")
        answer = json.loads(body)
        token = f"Bearer {answer.get('token') or answer['access_token']}"
        if len(token) > MAX_TOKEN:
            raise _Refused("the registry's token is too long")
        self._tokens[ref.host, ref.repository] = token
        while len(self._tokens) > MAX_TOKENS:
            self._tokens.popitem(last=False)
        return token

    async def _fetch(
        self, url: str, headers: dict[str, str], authorization: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        origin = urlsplit(url).netloc
        for _ in range(MAX_REDIRECTS):
            parts = urlsplit(url)
            if parts.scheme != self._scheme(parts.netloc) and parts.scheme != "https":
                raise _Refused("the registry redirects to an unprotected address")
            sent = dict(headers)
            if authorization is not None and parts.netloc == origin:
                sent["Authorization"] = authorization
            status, answer, body = await self._once(url, sent)
            if status not in (301, 302, 303, 307, 308):
                return status, answer, body
            url = urljoin(url, answer.get("location", ""))
        raise _Refused("the registry redirects without end")

    async def _once(self, url: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        timeouts = {"timeout": {"connect": 10, "read": 10, "write": 10, "pool": 10}}
        async with self._pool.stream(
            "GET", url, headers=[*headers.items()], extensions=timeouts
        ) as response:
            body = bytearray()
            async for part in response.aiter_stream():
                body += part
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise _Refused("the registry sends a document that is too large")
            answer = {k.decode().lower(): v.decode(errors="replace") for k, v in response.headers}
            return response.status, answer, bytes(body)

    def _scheme(self, host: str) -> str:
        return "http" if host in self._config.plain_http else "https"


def _api_host(host: str) -> str:
    return "registry-1.docker.io" if host == DOCKER_HUB else host


def _linux_amd64(index: dict[str, Any]) -> str:
    for entry in index["manifests"]:
        platform = entry.get("platform") or {}
        fits = (platform.get("os"), platform.get("architecture")) == ("linux", "amd64")
        if fits and entry.get("mediaType") in _MANIFEST:
            return str(entry["digest"])
    raise _Refused("there is no image for linux/amd64")


def _size(layer: dict[str, Any]) -> int:
    size = layer["size"]
    if type(size) is not int or size < 0:
        raise _Refused("a layer has no size")
    return size


def _ports(exposed: dict[str, Any]) -> tuple[str, ...]:
    named = [str(port) if "/" in str(port) else f"{port}/tcp" for port in exposed]
    return tuple(sorted(port for port in named if _PORT.fullmatch(port)))


def _volumes(declared: dict[str, Any]) -> tuple[str, ...]:
    for path in declared:
        if (
            not path.startswith("/")
            or path == "/"
            or ".." in path.split("/")
            or ":" in path
            or len(path) > 256
        ):
            raise _Refused("the image declares a volume at a path that is not allowed")
    return tuple(sorted(declared))
