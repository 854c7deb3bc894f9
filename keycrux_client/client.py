"""Talks to escrow services: each session under a key of its own, made for it and attested for it.

A service that does not answer in time, answers with garbage, or whose reply does not open, is SILENT: that
never means "holds none".
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from keycrux_client.discovery import Service
from keycrux_client.ports import Attester, Clock, Relays
from keycrux_client.protocol import (
    Credentials,
    EscrowPolicy,
    GetReply,
    Got,
    get_params,
    is_ok,
    read_get_reply,
    set_params,
)
from nips import kinds
from nips.errors import BadInput
from nips.event import Event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.rpc import RpcReply, RpcRequest, build_request, open_reply_untrusted

ANSWER_S = 10
T = TypeVar("T")


@dataclass(frozen=True)
class EscrowClient:
    """``policy`` is under what we store; ``credentials`` is what we can show."""

    relays: Relays
    attester: Attester
    clock: Clock
    credentials: Credentials
    policy: EscrowPolicy
    answer_s: float = ANSWER_S

    async def get(self, service: Service) -> GetReply:
        """What the service holds for this code on this machine."""
        key, document = await self._session()
        reply = await self._call(service, key, "get", get_params(document, self.credentials))
        return read_get_reply(reply) if reply is not None else GetReply(Got.SILENT)

    async def set(self, service: Service, data: str, *, expected: str | None = None) -> bool:
        """Whether the service took it. Callers must have looked at what it holds before: ``expected``, "" for nothing."""
        key, document = await self._session()
        params = set_params(document, self.credentials, self.policy, data, expected)
        reply = await self._call(service, key, "set", params)
        return reply is not None and is_ok(reply)

    async def store(self, service: Service, data: str, *, expected: str | None) -> bool:
        """As `set`, and whether it is there: what a service took counts when it gives it back."""
        took = await self.set(service, data, expected=expected)
        return took and (await self.get(service)).data == data

    async def get_all(self, services: Sequence[Service]) -> dict[Service, GetReply]:
        """All at the same time."""
        found: dict[Service, GetReply] = {}

        async def get(service: Service) -> None:
            found[service] = await self.get(service)

        async with trio.open_nursery() as nursery:
            for service in services:
                nursery.start_soon(get, service)
        return found

    async def _session(self) -> tuple[SecretKey, bytes]:
        key = SecretKey.generate()
        return key, await self.attester.document(public_key=bytes.fromhex(key.pubkey))

    async def _call(
        self, service: Service, key: SecretKey, method: str, params: dict[str, object]
    ) -> RpcReply | None:
        rpc_id = secrets.token_hex(8)
        request = build_request(
            key,
            kinds.KEYCRUX_RPC,
            service.pubkey,
            RpcRequest(rpc_id, method, params),
            self.clock.now(),
        )
        # The author is the service: what another one says in its place is not an answer.
        answers = Filter(
            kinds=frozenset({kinds.KEYCRUX_RPC}),
            authors=frozenset({service.pubkey}),
            tags={"p": frozenset({key.pubkey})},
        )

        def opened(event: Event) -> RpcReply | None:
            reply = _or_none(lambda: open_reply_untrusted(key, event))
            return reply if reply is not None and reply.rpc_id == rpc_id else None

        event = await self.relays.ask(
            service.relay_url, request, answers, lambda e: opened(e) is not None, self.answer_s
        )
        return opened(event) if event is not None else None


def _or_none(work: Callable[[], T]) -> T | None:
    try:
        return work()
    except BadInput:
        return None
