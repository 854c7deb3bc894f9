"""The caller's side: call an instance over a relay, and wait for events. For the CLI, tests, the demo."""

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from bot.clock import SystemClock
from bot.relay.connection import Outcome, RelayPolicy
from bot.relay.pool import RelayPool
from nips import kinds
from nips.event import VerifiedEvent, sign_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.rpc import RpcRequest, build_request, open_reply_untrusted

ANSWER_S = 30
DAY_S = 86_400
# A person waits: look for the relay more often than a server would.
PATIENCE = RelayPolicy(backoff_first_s=0.2, backoff_most_s=3)


class CallRefused(Exception):
    """The instance answered with an error; the message is the error."""


class NoAnswer(Exception):
    """Nobody answered in time, or no relay took the request."""


class Client:
    """One key on some relays. Made by `open_client`."""

    def __init__(self, key: SecretKey, pool: RelayPool) -> None:
        self.key = key
        self.pool = pool
        self._clock = SystemClock()
        self._waiting: list[
            tuple[Callable[[VerifiedEvent], bool], trio.Event, list[VerifiedEvent]]
        ] = []
        # What came while nobody waited for it yet: an answer may be quicker than its question.
        self._past: list[VerifiedEvent] = []

    async def run(self) -> None:
        while True:
            event = (await self.pool.receive()).event
            self._past = [*self._past[-2_000:], event]
            for wanted, came, found in self._waiting:
                if not found and wanted(event):
                    found.append(event)
                    came.set()

    def watch(self, *filters: Filter) -> None:
        """Listen to these, stored and live."""
        self.pool.subscribe(secrets.token_hex(4), filters)

    async def wait_for(
        self, wanted: Callable[[VerifiedEvent], bool], timeout_s: float = ANSWER_S
    ) -> VerifiedEvent:
        """The first watched event that fits, past or future. Raises `NoAnswer`."""
        for event in self._past:
            if wanted(event):
                return event
        entry: tuple[Callable[[VerifiedEvent], bool], trio.Event, list[VerifiedEvent]] = (
            wanted,
            trio.Event(),
            [],
        )
        self._waiting.append(entry)
        try:
            with trio.move_on_after(timeout_s):
                await entry[1].wait()
        finally:
            self._waiting.remove(entry)
        if not entry[2]:
            raise NoAnswer("nothing came in time")
        return entry[2][0]

    async def publish(
        self, kind: int, content: str, tags: Sequence[Sequence[str]]
    ) -> VerifiedEvent:
        """Sign and publish. Raises `NoAnswer` when no relay takes it."""
        event = sign_event(self.key, kind, content, tags, self._clock.now())
        await self.send(event)
        return event

    async def send(self, event: VerifiedEvent) -> None:
        outcomes = await self.pool.publish(event)
        if not any(o.outcome is Outcome.ACCEPTED for o in outcomes.values()):
            told = ", ".join(f"{url}: {o.outcome.value} {o.reason}" for url, o in outcomes.items())
            raise NoAnswer(f"no relay took the event ({told})")

    async def call(self, service: str, method: str, **params: object) -> Any:
        """The result. Raises `CallRefused` with the instance's error, or `NoAnswer`."""
        rpc_id = secrets.token_hex(6)
        request = build_request(
            self.key, kinds.RPC, service, RpcRequest(rpc_id, method, params), self._clock.now()
        )

        def is_reply(event: VerifiedEvent) -> bool:
            ours = (
                event.kind == kinds.RPC
                and event.pubkey == service
                and request.id in event.tag_values("e")
            )
            return ours and open_reply_untrusted(self.key, event).rpc_id in (rpc_id, "")

        await self.send(request)
        reply = open_reply_untrusted(self.key, await self.wait_for(is_reply))
        if reply.error is not None:
            raise CallRefused(reply.error)
        return reply.result


@asynccontextmanager
async def open_client(key: SecretKey, relay_urls: Sequence[str]) -> AsyncIterator[Client]:
    """A connected client that hears replies to its calls. Raises `NoAnswer` when no relay is there."""
    clock = SystemClock()
    pool = RelayPool(clock, auth_key=key, policy=PATIENCE)
    client = Client(key, pool)
    mine = {"p": frozenset({key.pubkey})}
    # Far back: the server's clock dates its answers, and ours may be hours ahead of it.
    pool.subscribe("replies", [Filter(kinds=frozenset({kinds.RPC}), tags=mine)], back_s=DAY_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        for url in relay_urls:
            pool.add(url)
        nursery.start_soon(client.run)
        with trio.move_on_after(ANSWER_S) as scope:
            await pool.wait_connected()
        if scope.cancelled_caught:
            nursery.cancel_scope.cancel()
            raise NoAnswer(f"no relay can be reached: {', '.join(relay_urls)}")
        yield client
        nursery.cancel_scope.cancel()
