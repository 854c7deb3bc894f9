"""Finds events on relays that strangers name, and carries requests to services there: one visit each.

Relays that the operator configured may be anywhere; all others only at public addresses. The embedded
relay is searched without a socket.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from bot.adapters.guarded_network import resolve_public
from bot.relay.courier import REPEAT_S, ask, fetch
from bot.relay.server import RelayServer
from bot.relay.websocket import FindAddress
from nips.event import VerifiedEvent
from nips.filters import Filter
from nips.relay_url import normal_url

MAX_AT_ONCE = 16
MAX_RELAYS = 8


@dataclass(frozen=True)
class Searched:
    """`keycrux_client.ports.Searched`: ``silent`` in the order in which they were asked."""

    events: tuple[VerifiedEvent, ...]
    silent: tuple[str, ...]


class RelayEvents:
    """`handlers.ports.Events` and `keycrux_client.ports.Relays`. ``trusted_urls`` are the operator's own."""

    def __init__(
        self,
        trusted_urls: Sequence[str],
        embedded: RelayServer | None = None,
        embedded_urls: Sequence[str] = (),
    ) -> None:
        self._trusted = frozenset(map(normal_url, trusted_urls))
        self._embedded = embedded
        self._embedded_urls = frozenset(map(normal_url, embedded_urls))
        self._at_once = trio.CapacityLimiter(MAX_AT_ONCE)

    async def find(
        self, filters: Sequence[Filter], relay_urls: Sequence[str]
    ) -> list[VerifiedEvent]:
        """The newest first, from the first `MAX_RELAYS` of these; one that does not answer is left out."""
        return list((await self.search(filters, relay_urls)).events)

    async def search(self, filters: Sequence[Filter], relay_urls: Sequence[str]) -> Searched:
        """As `find`, and which relays did not say all that they have."""
        urls = list(dict.fromkeys(map(normal_url, relay_urls)))
        found: dict[str, VerifiedEvent] = {}
        heard: set[str] = set()

        async def look(url: str) -> None:
            events, is_all = await self._ask_one(url, filters)
            found.update((event.id, event) for event in events)
            if is_all:
                heard.add(url)

        async with trio.open_nursery() as nursery:
            for url in urls[:MAX_RELAYS]:
                nursery.start_soon(look, url)
        events = sorted(found.values(), key=lambda event: (-event.created_at, event.id))
        return Searched(tuple(events), tuple(url for url in urls if url not in heard))

    async def _ask_one(
        self, url: str, filters: Sequence[Filter]
    ) -> tuple[list[VerifiedEvent], bool]:
        if normal_url(url) in self._embedded_urls and self._embedded is not None:
            return self._embedded.query(filters), True
        async with self._at_once:
            return await fetch(url, filters, find_address=self._guard(url))

    async def ask(
        self,
        url: str,
        request: VerifiedEvent,
        answers: Filter,
        is_reply: Callable[[VerifiedEvent], bool],
        within_s: float,
        repeat_s: float | None = REPEAT_S,
    ) -> VerifiedEvent | None:
        """The reply to a request, or None."""
        guard = self._guard(url)
        async with self._at_once:
            return await ask(
                url,
                request,
                answers,
                is_reply,
                find_address=guard,
                within_s=within_s,
                repeat_s=repeat_s,
            )

    def _guard(self, url: str) -> FindAddress | None:
        return None if normal_url(url) in self._trusted else resolve_public
