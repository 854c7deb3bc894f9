"""HTTP with an OCI registry: tokens, redirects, bounded documents, and blobs that go on where they broke off.

A registry is a stranger. Documents are bounded in size and time; redirects and token realms lead to public
addresses only and never take another host's credentials along. Whatever goes wrong is one exception,
`Refused`, that says whether it may pass. How fast a blob comes is for its reader to bound.
"""

import base64
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlencode, urljoin, urlsplit

import httpcore
import orjson
import trio

from bot.adapters.guarded_network import GuardedBackend
from handlers.domain.image import DOCKER_HUB, ImageRef

MAX_DOCUMENT_BYTES = 4 << 20
MAX_WORDS_BYTES = 4_096
MAX_REDIRECTS = 5
# No document, and no answer's head, may take longer.
DOCUMENT_S = 15
SILENCE_S = 10
MAX_CONNECTIONS, MAX_IDLE = 128, 16
MAX_CHALLENGE, MAX_TOKEN, MAX_TOKENS = 2_048, 16_384, 256
_REDIRECTS = (301, 302, 303, 307, 308)
_FAULTS = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)
# A parameter (RFC 9110, 11.2), or a word by itself: the name of a scheme.
_CHALLENGE = re.compile(r'([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))|([\w-]+)')


@dataclass(frozen=True)
class RegistryConfig:
    """``plain_http`` lists ``host:port`` that are spoken to without TLS and may be private addresses."""

    plain_http: tuple[str, ...] = ()
    # host -> "user:password"
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    # What the images on disk may take in all; those that nobody runs leave first.
    store_bytes: int = 20_000_000_000


class Refused(Exception):
    """Why an image cannot be had. ``permanent``: asking again will not help."""

    def __init__(self, text: str, *, permanent: bool = True) -> None:
        super().__init__(text)
        self.permanent = permanent


class Broken(Refused):
    """The connection failed or fell silent: what came so far is worth keeping."""

    def __init__(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        super().__init__(f"the registry cannot be reached: {text}", permanent=False)


class TooSlow(Refused):
    """It drips, or keeps us waiting; what it sends is not worth its place."""

    def __init__(self, text: str) -> None:
        super().__init__(f"the registry is too slow: {text}", permanent=False)


@dataclass(frozen=True)
class Blob:
    """A blob on its way, from ``offset`` on: the registry may send it from its beginning again."""

    offset: int
    chunks: AsyncIterator[bytes]


class RegistryClient:
    """One for all registries: it remembers tokens, and keeps a few connections open."""

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._pool = httpcore.AsyncConnectionPool(
            network_backend=GuardedBackend(config.plain_http),
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_IDLE,
            keepalive_expiry=30,
        )
        self._tokens: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def document(self, ref: ImageRef, path: str, accept: str) -> tuple[bytes, str]:
        """A manifest's or config's bytes and content type. Raises `Refused`."""
        with trio.move_on_after(DOCUMENT_S):
            async with self._answer(ref, path, {"Accept": accept}) as response:
                await _expect(response, 200)
                body = await _read(response, MAX_DOCUMENT_BYTES)
                kind = _header(response, b"content-type").partition(";")[0]
                return body, kind
        raise TooSlow(f"no document within {DOCUMENT_S} s")

    @asynccontextmanager
    async def blob(self, ref: ImageRef, digest: str, offset: int) -> AsyncIterator[Blob]:
        """A blob from ``offset`` on, if the registry can do that. Raises `Refused`, also while it is read."""
        wanted = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._answer(ref, f"blobs/{digest}", wanted) as response:
            if response.status == 206:
                begins = re.match(r"bytes (\d{1,18})-", _header(response, b"content-range"))
                if begins is None:
                    raise Refused("the registry sends a part without saying which")
                yield Blob(int(begins[1]), _chunks(response))
            else:
                await _expect(response, 200)
                yield Blob(0, _chunks(response))

    @asynccontextmanager
    async def _answer(
        self, ref: ImageRef, path: str, headers: Mapping[str, str]
    ) -> AsyncIterator[httpcore.Response]:
        url = f"{self._scheme(ref.host)}://{_api_host(ref.host)}/v2/{ref.repository}/{path}"
        authorization = self._tokens.get((ref.host, ref.repository))
        async with self._follow(url, headers, authorization) as response:
            if response.status != 401:
                yield response
                return
            challenge = _header(response, b"www-authenticate")
        authorization = await self._authorize(ref, challenge)
        async with self._follow(url, headers, authorization) as response:
            yield response

    async def _authorize(self, ref: ImageRef, challenge: str) -> str:
        if len(challenge) > MAX_CHALLENGE:
            raise Refused("the registry's challenge is too long")
        offered = parse_challenge_untrusted(challenge)
        credentials = self._config.credentials.get(ref.host)
        basic = f"Basic {base64.b64encode(credentials.encode()).decode()}" if credentials else None
        if "bearer" in offered:
            return await self._token(ref, offered["bearer"], basic)
        if "basic" in offered and basic is not None:
            return basic
        raise Refused("the registry wants credentials")

    async def _token(self, ref: ImageRef, asked: Mapping[str, str], basic: str | None) -> str:
        realm = asked.get("realm", "")
        if not self._may_hear_credentials(realm):
            raise Refused("the registry sends us to an unprotected token server")
        query = {"service": asked.get("service", ""), "scope": f"repository:{ref.repository}:pull"}
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
        # Credentials go to the realm that the registry itself names, as the token protocol has it.
        async with self._follow(url, {}, basic) as response:
            await _expect(response, 200, "the registry's token server")
            token = f"Bearer {_token_in(await _read(response, MAX_DOCUMENT_BYTES))}"
        if len(token) > MAX_TOKEN:
            raise Refused("the registry's token is too long")
        self._tokens[ref.host, ref.repository] = token
        while len(self._tokens) > MAX_TOKENS:
            self._tokens.popitem(last=False)
        return token

    def _may_hear_credentials(self, realm: str) -> bool:
        return realm.startswith("https://") or _host_of(realm) in self._config.plain_http

    @asynccontextmanager
    async def _follow(
        self, url: str, headers: Mapping[str, str], authorization: str | None
    ) -> AsyncIterator[httpcore.Response]:
        origin = _host_of(url)
        for _ in range(MAX_REDIRECTS):
            host = _host_of(url)
            if not url.startswith((f"{self._scheme(host)}://", "https://")):
                raise Refused("the registry redirects to an unprotected address")
            sent = dict(headers)
            if authorization is not None and host == origin:
                sent["Authorization"] = authorization
            response = await self._send(url, sent)
            try:
                if response.status not in _REDIRECTS:
                    yield response
                    return
                url = _joined(url, _header(response, b"location"))
            finally:
                await response.aclose()
        raise Refused("the registry redirects without end")

    async def _send(self, url: str, headers: Mapping[str, str]) -> httpcore.Response:
        """The head of the answer; a body that nobody reads to its end costs its connection."""
        seconds = dict.fromkeys(("connect", "read", "write", "pool"), SILENCE_S)
        try:
            sent = [("Host", _host_of(url).rpartition("@")[2]), *headers.items()]
            request = httpcore.Request("GET", url, headers=sent, extensions={"timeout": seconds})
            with trio.fail_after(DOCUMENT_S):
                return await self._pool.handle_async_request(request)
        except (*_FAULTS, trio.TooSlowError) as error:
            raise Broken(error) from error
        except (ValueError, TypeError, httpcore.UnsupportedProtocol) as error:
            raise Refused("the registry sends us to an address that is none") from error

    def _scheme(self, host: str) -> str:
        return "http" if host in self._config.plain_http else "https"


def parse_challenge_untrusted(text: str) -> dict[str, dict[str, str]]:
    """The schemes of all ``WWW-Authenticate`` headers, in lower case, each with its parameters (RFC 9110, 11.6.1)."""
    schemes: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for name, quoted, bare, word in _CHALLENGE.findall(text):
        if word:
            current = schemes.setdefault(word.lower(), {})
        else:
            current.setdefault(name.lower(), quoted or bare)
    return schemes


async def _expect(response: httpcore.Response, status: int, who: str = "the registry") -> None:
    """Raises `Refused` with the registry's own words when the answer has another status."""
    if response.status == status:
        return
    if response.status in (401, 403, 404) and who == "the registry":
        raise Refused("there is no such image, or it is private")
    words = _words(await _beginning(response))
    # Too many requests, and faults of the server, pass; so does a timeout.
    passes = response.status in (408, 425, 429) or response.status >= 500
    raise Refused(f"{who} answers {response.status}{words}", permanent=not passes)


async def _beginning(response: httpcore.Response) -> bytes:
    """Of an error's body as much as its words need, if it comes in time."""
    body = bytearray()
    with trio.move_on_after(2):
        try:
            async for chunk in _chunks(response):
                body += chunk[: MAX_WORDS_BYTES - len(body)]
                if len(body) >= MAX_WORDS_BYTES:
                    break
        except Broken:
            pass  # the status alone tells enough
    return bytes(body)


def _words(body: bytes) -> str:
    """The first error's code and message, printable and short."""
    try:
        first = orjson.loads(body)["errors"][0]
        said = ": ".join(str(first[name]) for name in ("code", "message") if first.get(name))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return ""
    plain = "".join(c if c.isprintable() else " " for c in said)[:120]
    return f" ({plain})" if plain else ""


async def _read(response: httpcore.Response, limit: int) -> bytes:
    body = bytearray()
    async for chunk in _chunks(response):
        body += chunk
        if len(body) > limit:
            raise Refused("the registry sends a document that is too large")
    return bytes(body)


async def _chunks(response: httpcore.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_stream():
            yield chunk
    except _FAULTS as error:
        raise Broken(error) from error


def _token_in(body: bytes) -> str:
    try:
        answer = orjson.loads(body)
        return str(answer.get("token") or answer["access_token"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused("the registry's token server answers something else") from error


def _header(response: httpcore.Response, name: bytes) -> str:
    """All headers of that name, joined as if they were one (RFC 9110, 5.2)."""
    return ", ".join(v.decode(errors="replace") for k, v in response.headers if k.lower() == name)


def _api_host(host: str) -> str:
    return "registry-1.docker.io" if host == DOCKER_HUB else host


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError as error:
        raise Refused("the registry sends us to an address that is none") from error


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise Refused("the registry sends us to an address that is none") from error
