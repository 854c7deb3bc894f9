"""The instance's own events, until every relay has them: a relay may be away, or refuse for a while."""

from collections.abc import Sequence

import structlog
import trio

from bot.server.outlet import Outlet
from nips.event import VerifiedEvent

log = structlog.get_logger()
FIRST_WAIT_S, MOST_WAIT_S = 5, 600


class Announcement:
    """`renew` with new events, then `bring` again and again. Times are trio's, in seconds."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._left: list[tuple[VerifiedEvent, tuple[str, ...]]] = []
        self._due_at, self._wait_s = 0.0, FIRST_WAIT_S
        self._told: dict[str, str] = {}

    def renew(self, events: Sequence[VerifiedEvent], relay_urls: Sequence[str]) -> None:
        """These replace all earlier ones, delivered or not."""
        self._left = [(event, tuple(relay_urls)) for event in events]
        self._due_at, self._wait_s = 0.0, FIRST_WAIT_S

    async def bring(self) -> None:
        """Try once what is left, if it is time."""
        if not self._left or trio.current_time() < self._due_at:
            return
        tried, missing = self._left, dict[str, dict[str, str]]()

        async def one(event: VerifiedEvent, urls: tuple[str, ...]) -> None:
            missing[event.id] = await self._outlet.deliver(event, urls)

        async with trio.open_nursery() as nursery:
            for event, urls in tried:
                nursery.start_soon(one, event, urls)
        self._left = [(event, tuple(missing[event.id])) for event, _ in tried if missing[event.id]]
        self._tell({url: why for problems in missing.values() for url, why in problems.items()})
        self._due_at = trio.current_time() + self._wait_s
        self._wait_s = min(MOST_WAIT_S, 2 * self._wait_s)

    def _tell(self, problems: dict[str, str]) -> None:
        """Each relay's reason once, until it changes or the relay has everything."""
        for url, reason in problems.items():
            if self._told.get(url) != reason:
                log.warning("relay does not take our announcement", relay=url, reason=reason)
        for url in self._told.keys() - problems.keys():
            log.info("relay has our announcement now", relay=url)
        self._told = problems
