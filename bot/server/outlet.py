"""Where our events go out: the embedded relay, without a socket, and the relays we connect to."""

from collections.abc import Sequence

import trio

from bot.adapters.guarded_network import resolve_public
from bot.relay.connection import Outcome
from bot.relay.courier import bring
from bot.relay.pool import RelayPool
from bot.relay.server import RelayServer
from nips.event import Event
from nips.relay_url import normal_url


class Outlet:
    """``own_urls`` are the names under which the embedded relay is known."""

    def __init__(
        self, pool: RelayPool, server: RelayServer | None, own_urls: Sequence[str]
    ) -> None:
        self._pool = pool
        self._server = server
        self._own_urls = frozenset(map(normal_url, own_urls))

    async def reply(self, event: Event) -> None:
        """An answer that is worth something now or never: everywhere, without waiting for an OK."""
        if self._server is not None:
            await self._server.publish(event)
        if self._pool.urls:
            await self._pool.publish(event, wait_ok=False)

    async def deliver(self, event: Event, relay_urls: Sequence[str]) -> list[str]:
        """Bring it to these relays; which of them do not have it yet."""
        missing: list[str] = []

        async def to(url: str) -> None:
            if not await self._deliver_to(event, normal_url(url)):
                missing.append(url)

        async with trio.open_nursery() as nursery:
            for url in dict.fromkeys(relay_urls):
                nursery.start_soon(to, url)
        return missing

    async def _deliver_to(self, event: Event, url: str) -> bool:
        if url in self._own_urls and self._server is not None:
            return await self._server.publish(event)
        if url in self._pool.urls:
            outcomes = await self._pool.publish(event, [url])
            return outcomes[url].outcome is Outcome.ACCEPTED
        # A relay that a stranger named: it must not become one of ours.
        return await bring(event, url, find_address=resolve_public)
