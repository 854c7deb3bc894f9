"""Asks an instance itself: to prove itself over a nonce of ours, and what it knows of a container. What was announced
may be stolen, old or taken back since; an answer to a question of this minute cannot be."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

from bot.adapters.relay_events import RelayEvents
from nips import kinds
from nips.errors import BadAttestation, BadInput
from nips.event import parse_event_untrusted
from nips.filters import Filter
from nips.keys import SecretKey
from nips.rpc import RpcReply, RpcRequest, build_request, open_reply_untrusted
from nips.tee.attestation import Verifier
from nips.tee.nec01 import Root, verify_root
from nips.tee.policies import InstanceEvidence

ANSWER_S = 8
NONCE_BYTES = 32
MAX_RELAYS = 8


@dataclass(frozen=True)
class Answered:
    """What an instance says to a nonce."""

    nonce: bytes
    reply: RpcReply


@dataclass(frozen=True)
class Line:
    """The way to an instance: its key, over any of these relays, at this time."""

    relays: RelayEvents
    instance: str
    relay_urls: tuple[str, ...]
    now: int

    async def challenge(self) -> Answered | None:
        """Its answer to a nonce that nobody has seen before; None when there is none."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        reply = await self.ask("attest", {"nonce": nonce.hex()})
        return Answered(nonce, reply) if reply is not None else None

    async def ask(self, method: str, params: Mapping[str, object]) -> RpcReply | None:
        """The first answer that comes over any of the relays; one that is no error is preferred."""
        replies: list[RpcReply] = []
        async with trio.open_nursery() as nursery:

            async def ask_over(url: str) -> None:
                reply = await self._ask_over(url, method, params)
                if reply is not None:
                    replies.append(reply)
                    if reply.error is None:
                        nursery.cancel_scope.cancel()

            for url in list(dict.fromkeys(self.relay_urls))[:MAX_RELAYS]:
                nursery.start_soon(ask_over, url)
        return min(replies, key=lambda reply: reply.error is not None, default=None)

    async def _ask_over(
        self, url: str, method: str, params: Mapping[str, object]
    ) -> RpcReply | None:
        # A key for this one question: nobody else can read the answer, or have one ready.
        key = SecretKey.generate()
        call = RpcRequest(secrets.token_hex(8), method, dict(params))
        request = build_request(key, kinds.RPC, self.instance, call, self.now)
        answers = Filter(
            kinds=frozenset({kinds.RPC}),
            authors=frozenset({self.instance}),
            tags={"p": frozenset({key.pubkey})},
        )
        event = await self.relays.ask(
            url, request, answers, lambda e: request.id in e.tag_values("e"), ANSWER_S
        )
        try:
            return open_reply_untrusted(key, event) if event is not None else None
        except BadInput:
            return None


def line_to(
    relays: RelayEvents, evidence: InstanceEvidence, relay_urls: Sequence[str], now: int
) -> Line:
    """Over the relays that were named, and those that the instance announces."""
    return Line(relays, evidence.pubkey, (*relay_urls, *evidence.relay_urls), now)


def check_answer(
    answered: Answered, evidence: InstanceEvidence, verifier: Verifier, now: int
) -> Root:
    """The fresh attestation, if it is of the key and the code that were announced. Raises `BadInput`."""
    result = answered.reply.result
    if not isinstance(result, dict) or "tee_root" not in result:
        raise BadAttestation("the instance's answer holds no document")
    event = parse_event_untrusted(result["tee_root"])
    root = verify_root(event.json.decode(), verifier, now, nonce=answered.nonce)
    if root.pubkey != evidence.pubkey:
        raise BadAttestation("the fresh document is another key's")
    if root.attested.pcrs != evidence.root.attested.pcrs:
        raise BadAttestation("the fresh document is about other code than announced")
    return root
