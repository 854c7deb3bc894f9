"""Where our events go out: the embedded relay, without a socket, and the relays we connect to."""

from collections.abc import Iterable, Sequence

import trio

from bot.adapters.guarded_network import resolve_public
from bot.relay.connection import Outcome
from bot.relay.courier import bring
from bot.relay.pool import RelayPool
from bot.relay.server import RelayServer
from nips.event import VerifiedEvent
from nips.relay_url import normal_url


class Outlet:
    """``own_urls`` are the names under which the embedded relay is known."""

    def __init__(
        self, pool: RelayPool, server: RelayServer | None, own_urls: Sequence[str]
    ) -> None:
        self._pool = pool
        self._server = server
        self._own_urls = (
            frozenset(map(normal_url, own_urls)) if server is not None else frozenset()
        )

    async def reply(self, event: VerifiedEvent) -> None:
        """An answer that is worth something now or never: everywhere, without waiting for an OK."""
        if self._server is not None:
            await self._server.publish(event)
        if self._pool.urls:
            await self._pool.publish(event, wait_ok=False)

    def is_ours(self, url: str) -> bool:
        """Whether the operator chose that relay; all others were named by strangers."""
        return normal_url(url) in self._own_urls | self._pool.urls

    async def deliver(self, event: VerifiedEvent, relay_urls: Iterable[str]) -> dict[str, str]:
        """Bring it to these relays: which of them do not have it yet, and why."""
        missing: dict[str, str] = {}

        async def to(url: str) -> None:
            problem = await self._deliver_to(event, url)
            if problem is not None:
                missing[url] = problem

        async with trio.open_nursery() as nursery:
            for url in {normal_url(url): url for url in relay_urls}.values():
                nursery.start_soon(to, url)
        return missing

    async def _deliver_to(self, event: VerifiedEvent, url: str) -> str | None:
        name = normal_url(url)
        if name in self._own_urls and self._server is not None:
            return None if await self._server.publish(event) else "it cannot be stored here"
        if name in self._pool.urls:
            published = (await self._pool.publish(event, [url]))[url]
            if published.outcome is Outcome.ACCEPTED:
                return None
            return f"{published.outcome.value} {published.reason}".rstrip()
        # A relay that a stranger named: it must not become one of ours.
        brought = await bring(event, url, find_address=resolve_public)
        return None if brought else "it did not take the event"
