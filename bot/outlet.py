"""Where our events go out: the embedded relay, without a socket, and the relays we connect to."""

from collections.abc import Sequence

from bot.relay.connection import Outcome
from bot.relay.pool import RelayPool
from bot.relay.server import RelayServer
from nips.event import Event


class Outlet:
    """``own_urls`` are the names under which the embedded relay is known."""

    def __init__(
        self, pool: RelayPool, server: RelayServer | None, own_urls: Sequence[str]
    ) -> None:
        self._pool = pool
        self._server = server
        self._own_urls = frozenset(url.rstrip("/") for url in own_urls)

    async def reply(self, event: Event) -> None:
        """An answer that is worth something now or never: everywhere, without waiting for an OK."""
        if self._server is not None:
            self._server.publish(event)
        await self._pool.publish(event, wait_ok=False)

    async def deliver(self, event: Event, relay_urls: Sequence[str]) -> bool:
        """Whether at least one of these relays has it now."""
        urls = [url.rstrip("/") for url in relay_urls]
        delivered = False
        if self._server is not None and self._own_urls.intersection(urls):
            self._server.publish(event)
            delivered = True
        others = [
            url
            for url in urls
            if url not in self._own_urls and url.startswith(("ws://", "wss://"))
        ]
        outcomes = await self._pool.publish(event, others)
        return delivered or any(o.outcome is Outcome.ACCEPTED for o in outcomes.values())
