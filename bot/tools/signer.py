"""Who signs for a maintainer: a key in a file, or a bunker (NIP-46) that keeps the key to itself."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bot.adapters.relay_events import RelayEvents
from bot.boot.identity import load_key
from handlers.ports import Clock
from nips import kinds
from nips.crypto import is_pubkey
from nips.errors import BadInput
from nips.event import Tag, VerifiedEvent, sign_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip46 import (
    BunkerReply,
    BunkerUri,
    build_request,
    open_reply_untrusted,
    open_signed_untrusted,
    unsigned_event_json,
)

# A person may have to agree on a phone.
ANSWER_S = 120


class SignerProblem(Exception):
    """The signature cannot be had; the message says why."""


class Signer(Protocol):
    """Signs events as one pubkey."""

    async def pubkey(self) -> str: ...
    async def sign(
        self, kind: int, content: str, tags: Sequence[Tag], created_at: int
    ) -> VerifiedEvent: ...


class KeySigner:
    """A key that we hold."""

    def __init__(self, key: SecretKey) -> None:
        self._key = key

    async def pubkey(self) -> str:
        return self._key.pubkey

    async def sign(
        self, kind: int, content: str, tags: Sequence[Tag], created_at: int
    ) -> VerifiedEvent:
        return sign_event(self._key, kind, content, tags, created_at)


class BunkerSigner:
    """A remote signer. ``client_key`` is how the bunker knows us; it is kept beside the URI."""

    def __init__(
        self,
        uri: BunkerUri,
        client_key: SecretKey,
        relays: RelayEvents,
        clock: Clock,
        tell: "Tell",
        answer_s: float = ANSWER_S,
    ) -> None:
        self._uri, self._key, self._relays = uri, client_key, relays
        self._clock, self._tell, self._answer_s = clock, tell, answer_s
        self._connected = False
        self._pubkey: str | None = None
        self._told: set[str] = set()

    async def pubkey(self) -> str:
        if self._pubkey is None:
            await self._connect()
            found = await self._call("get_public_key", [])
            if not is_pubkey(found):
                raise SignerProblem("the bunker does not say whose key it holds")
            self._pubkey = found
        return self._pubkey

    async def sign(
        self, kind: int, content: str, tags: Sequence[Tag], created_at: int
    ) -> VerifiedEvent:
        pubkey, asked = await self.pubkey(), list(tags)
        text = await self._call(
            "sign_event", [unsigned_event_json(kind, content, asked, created_at)]
        )
        try:
            return open_signed_untrusted(text, pubkey, kind, content, asked, created_at)
        except BadInput as error:
            raise SignerProblem(str(error)) from error

    async def _connect(self) -> None:
        if self._connected:
            return
        secret = [self._uri.secret] if self._uri.secret is not None else []
        answer = await self._call("connect", [self._uri.signer, *secret])
        if answer not in ("ack", self._uri.secret):
            raise SignerProblem("the bunker does not acknowledge the connection")
        self._connected = True

    async def _call(self, method: str, params: list[str]) -> str:
        for url in self._uri.relay_urls:
            reply = await self._call_over(url, method, params)
            if reply is None:
                continue
            if reply.error is not None:
                raise SignerProblem(f"the bunker refuses {method}: {reply.error[:200]}")
            return reply.result
        raise SignerProblem(f"the bunker does not answer {method}")

    async def _call_over(self, url: str, method: str, params: list[str]) -> BunkerReply | None:
        request_id = secrets.token_hex(8)
        request = build_request(
            self._key, self._uri.signer, request_id, method, params, self._clock.now()
        )
        answers = Filter(
            kinds=frozenset({kinds.NOSTR_CONNECT}),
            authors=frozenset({self._uri.signer}),
            tags={"p": frozenset({self._key.pubkey})},
            # A bunker whose clock is slow answers as well; its replies are told apart by their ids.
            since=self._clock.now() - 3_600,
        )
        replies: list[BunkerReply] = []

        def is_final(event: VerifiedEvent) -> bool:
            try:
                reply = open_reply_untrusted(self._key, event)
            except BadInput:
                return False
            if reply.request_id != request_id:
                return False
            if reply.auth_url is not None:
                if reply.auth_url not in self._told:
                    self._told.add(reply.auth_url)
                    self._tell(f"the bunker asks you to agree at {reply.auth_url}")
                return False
            replies.append(reply)
            return True

        # Said once: a bunker may ask its owner every time.
        await self._relays.ask(url, request, answers, is_final, self._answer_s, repeat_s=None)
        return replies[0] if replies else None


class Tell(Protocol):
    """Says something to the person who waits."""

    def __call__(self, text: str) -> None: ...


def client_key_beside(uri_file: Path) -> SecretKey:
    """The key under which a bunker knows us: made once for each URI file."""
    return load_key(uri_file.with_name(uri_file.name + ".client"))
