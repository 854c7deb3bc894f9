"""DEVELOPMENT ONLY. A key-escrow service, compatible with keycrux (29525), attested by a development module.

python -m bot.devstack.keycrux --relay ws://… --state DIR --nsm SOCKET --root PEM --meta FILE --repo URL
"""

import argparse
import base64
import binascii
from pathlib import Path
from typing import Any

import trio

from bot.adapters.nsm import NsmAttester, open_transport
from bot.boot.identity import load_key
from bot.boot.standing import parse_meta_untrusted
from bot.clock import SystemClock
from bot.devstack.keycrux_book import KeycruxBook, KeycruxError
from bot.devstack.wallet import PATIENCE
from bot.relay.pool import RelayPool
from handlers.proof import Proof
from nips import kinds
from nips.errors import BadCiphertext, BadInput
from nips.event import VerifiedEvent, sign_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.rpc import RpcReply, RpcRequest, build_reply, open_request_untrusted
from nips.tee.anchor import development_anchor
from nips.tee.attestation import Verifier
from nips.tee.env import Env
from nips.tee.nec01 import check_public_key
from nips.tee.nec02 import Signatures, proof_tags

ANNOUNCE_S = 3_600
WINDOW_S = 120


class KeycruxService:
    """Answers events; knows no sockets."""

    def __init__(
        self, key: SecretKey, book: KeycruxBook, verifier: Verifier, clock: SystemClock
    ) -> None:
        self.key = key
        self._book, self._verifier, self._clock = book, verifier, clock
        self._seen: set[str] = set()
        self._started_at = clock.now()

    def answer(self, event: VerifiedEvent) -> VerifiedEvent | None:
        """The reply, once per request; None for what is not one."""
        # Old ones may be replays from before a restart, when what was seen was known.
        fresh = abs(event.created_at - self._now) <= WINDOW_S
        if event.id in self._seen or not fresh or event.created_at < self._started_at:
            return None
        self._seen.add(event.id)
        try:
            request = open_request_untrusted(self.key, event)
        except BadCiphertext:
            return None
        except BadInput:
            return build_reply(self.key, event, RpcReply("", None, "Bad request"), self._now)
        return build_reply(self.key, event, self._reply(event, request), self._now)

    @property
    def _now(self) -> int:
        return self._clock.now()

    def _reply(self, event: VerifiedEvent, request: RpcRequest) -> RpcReply:
        try:
            result = self._result(event, request.method, request.params)
        except (KeycruxError, BadInput) as error:
            return RpcReply(request.rpc_id, None, str(error))
        return RpcReply(request.rpc_id, result, None)

    def _result(self, event: VerifiedEvent, method: str, params: dict[str, Any]) -> object:
        match method:
            case "ping":
                return "pong"
            case "status":
                return self._book.status(self._started_at * 1_000)
            case "has":
                return self._book.has(params, self._now)
            case "set" | "get":
                attested = self._verifier.verify(_document(params), self._now)
                check_public_key(attested, event.pubkey)
                if method == "get":
                    return self._book.get(attested.pcrs, params, self._now)
                return self._book.set(attested.pcrs, params, event.created_at, self._now)
            case _:
                raise KeycruxError("Invalid method")


def _document(params: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(str(params.get("attestation")), validate=True)
    except binascii.Error:
        raise KeycruxError("Invalid request") from None


async def announcement(
    service: KeycruxService, proof: Proof, repo: str, relay_url: str, now: int
) -> VerifiedEvent:
    """13793, as any service in an enclave has it."""
    tags = [
        ("r", repo),
        ("name", "keycrux"),
        ("v", "0.0.1"),
        ("t", proof.env.value),
        ("relay", relay_url),
        ("o", "true"),
        ("alt", "DEVELOPMENT ONLY keycrux"),
        *proof_tags(await proof.current(now), proof.signatures),
    ]
    return sign_event(service.key, kinds.ANNOUNCEMENT, "DEVELOPMENT ONLY", tags, now)


async def serve(service: KeycruxService, proof: Proof, relay_url: str, repo: str) -> None:
    """Run until cancelled; writes ``ready`` to standard output once announced."""
    clock = SystemClock()
    pool = RelayPool(clock, auth_key=service.key, policy=PATIENCE)
    us = {"p": frozenset({service.key.pubkey})}
    wanted = Filter(kinds=frozenset({kinds.KEYCRUX_RPC}), tags=us)
    pool.subscribe("keycrux", [wanted], back_s=WINDOW_S)

    async def announce() -> None:
        while True:
            event = await announcement(service, proof, repo, relay_url, clock.now())
            await pool.publish(event)
            print("ready", flush=True)
            await trio.sleep(ANNOUNCE_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        pool.add(relay_url)
        await pool.wait_connected()
        nursery.start_soon(announce)
        while True:
            reply = service.answer((await pool.receive()).event)
            if reply is not None:
                await pool.publish(reply, wait_ok=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="DEVELOPMENT ONLY key escrow")
    parser.add_argument("--relay", required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--nsm", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="the development root (PEM)")
    parser.add_argument("--meta", type=Path, required=True)
    parser.add_argument("--repo", required=True)
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    key, clock = load_key(options.state / "keycrux.key"), SystemClock()
    verifier = Verifier(development_anchor(options.root.read_bytes()))
    service = KeycruxService(key, KeycruxBook(options.state / "held.sqlite"), verifier, clock)
    meta = parse_meta_untrusted(options.meta.read_bytes())
    signatures = Signatures(meta.builder, meta.launcher, meta.releases)
    attester = NsmAttester(open_transport(options.nsm))
    proof = Proof(key, attester, verifier, signatures, Env.DEBUG)
    trio.run(serve, service, proof, options.relay, options.repo)


if __name__ == "__main__":
    main()
