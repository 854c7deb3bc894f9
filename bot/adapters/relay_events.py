"""Finds events on relays that strangers name, and carries requests to services there: one visit each.

Relays that the operator configured may be anywhere; all others only at public addresses. The embedded
relay is asked without a socket.
"""

from collections.abc import Callable, Sequence

import trio

from bot.adapters.guarded_network import resolve_public
from bot.relay.courier import ask, fetch
from bot.relay.server import RelayServer
from bot.relay.websocket import FindAddress
from nips.event import Event
from nips.filters import Filter

MAX_AT_ONCE = 16
MAX_RELAYS = 8


class RelayEvents:
    """`handlers.ports.Events` and `keycrux_client.ports.Relays`. ``trusted_urls`` are the operator's own."""

    def __init__(
        self,
        trusted_urls: Sequence[str],
        embedded: RelayServer | None = None,
        embedded_urls: Sequence[str] = (),
    ) -> None:
        self._trusted = frozenset(url.rstrip("/") for url in trusted_urls)
        self._embedded = embedded
        self._embedded_urls = frozenset(url.rstrip("/") for url in embedded_urls)
        self._at_once = trio.CapacityLimiter(MAX_AT_ONCE)

    async def find(self, filters: Sequence[Filter], relay_urls: Sequence[str]) -> list[Event]:
        """From all of these relays; one that does not answer is left out."""
        found: dict[str, Event] = {}

        async def look(url: str) -> None:
            for event in await self._ask_one(url, filters):
                found[event.id] = event

        async with trio.open_nursery() as nursery:
            for url in list(dict.fromkeys(u.rstrip("/") for u in relay_urls))[:MAX_RELAYS]:
                nursery.start_soon(look, url)
        return sorted(found.values(), key=lambda event: (-event.created_at, event.id))

    async def _ask_one(self, url: str, filters: Sequence[Filter]) -> list[Event]:
        if url in self._embedded_urls and self._embedded is not None:
            return self._embedded.query(filters)
        async with self._at_once:
            return await fetch(url, filters, find_address=self._guard(url)) or []

    async def ask(
        self,
        url: str,
        request: Event,
        answers: Filter,
        is_reply: Callable[[Event], bool],
        within_s: float,
    ) -> Event | None:
        """The reply to a request, or None."""
        guard = self._guard(url)
        return await ask(url, request, answers, is_reply, find_address=guard, within_s=within_s)

    def _guard(self, url: str) -> FindAddress | None:
        return None if url.rstrip("/") in self._trusted else resolve_public
