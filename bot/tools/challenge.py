"""Asks an instance to prove itself now: a document over a nonce of ours. What it announced may be stolen or
old, this cannot be."""

import secrets
from collections.abc import Sequence
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


async def challenge(
    relays: RelayEvents, instance: str, relay_urls: Sequence[str], now: int
) -> Answered | None:
    """The first answer that comes over any of these relays; one that is no error is preferred."""
    answers: list[Answered] = []
    async with trio.open_nursery() as nursery:

        async def ask(url: str) -> None:
            answer = await _ask_one(relays, instance, url, now)
            if answer is not None:
                answers.append(answer)
                if answer.reply.error is None:
                    nursery.cancel_scope.cancel()

        for url in list(dict.fromkeys(relay_urls))[:MAX_RELAYS]:
            nursery.start_soon(ask, url)
    return min(answers, key=lambda a: a.reply.error is not None, default=None)


async def _ask_one(relays: RelayEvents, instance: str, url: str, now: int) -> Answered | None:
    key, nonce = SecretKey.generate(), secrets.token_bytes(NONCE_BYTES)
    call = RpcRequest(secrets.token_hex(8), "attest", {"nonce": nonce.hex()})
    request = build_request(key, kinds.RPC, instance, call, now)
    answers = Filter(
        kinds=frozenset({kinds.RPC}),
        authors=frozenset({instance}),
        tags={"p": frozenset({key.pubkey})},
    )
    event = await relays.ask(
        url, request, answers, lambda e: request.id in e.tag_values("e"), ANSWER_S
    )
    try:
        return Answered(nonce, open_reply_untrusted(key, event)) if event is not None else None
    except BadInput:
        return None


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
