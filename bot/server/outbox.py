"""Publishes what the handlers queued in their transactions, until every relay named has it.

Our own relays come first, all that is due at once. Relays that strangers name go in a lane beside, with a
budget of places, in all and for each host, of time, and of tries: however many of them are dead, ours are not
kept waiting. One read and one write for each round, whatever it held.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from urllib.parse import urlsplit

import structlog
import trio

from bot.server.outlet import Outlet
from handlers.ports import Clock, Store, Tx
from handlers.records import OutboxItem
from nips.event import VerifiedEvent, parse_event_json_untrusted, verify_event

log = structlog.get_logger()
BATCH = 100
MOST_WAIT_S = 600
# With these waits, some six hours for our relays and four minutes for others. Counted, since clocks jump.
TRIES, STRANGERS_TRIES = 46, 8


class Strangers:
    """Carries events to relays that are not ours, in the background, within bounds. Each visit is bounded in time."""

    def __init__(
        self,
        outlet: Outlet,
        nursery: trio.Nursery,
        *,
        at_once: int = 16,
        most_waiting: int = 256,
        most_per_host: int = 4,
        remembered: int = 2_000,
    ) -> None:
        self._outlet, self._nursery = outlet, nursery
        self._at_once = trio.CapacityLimiter(at_once)
        self._most_waiting, self._most_per_host = most_waiting, most_per_host
        self._remembered = remembered
        self._hosts: Counter[str] = Counter()
        self._carried: set[tuple[str, str]] = set()
        self._done: OrderedDict[tuple[str, str], None] = OrderedDict()

    def has(self, event: VerifiedEvent, url: str) -> bool:
        """Whether that relay took it. Forgotten after a while: then it is brought once more."""
        return (event.id, url) in self._done

    def carry(self, event: VerifiedEvent, url: str) -> None:
        """Bring it there, unless it is on its way, or all places are taken: it is tried again later."""
        host, errand = _host(url), (event.id, url)
        if (
            errand not in self._carried
            and len(self._carried) < self._most_waiting
            and self._hosts[host] < self._most_per_host
        ):
            self._carried.add(errand)
            self._hosts[host] += 1
            self._nursery.start_soon(self._carry, event, url)

    async def _carry(self, event: VerifiedEvent, url: str) -> None:
        errand = (event.id, url)
        try:
            async with self._at_once:
                if not await self._outlet.deliver(event, [url]):
                    self._done[errand] = None
                    if len(self._done) > self._remembered:
                        self._done.popitem(last=False)
        except Exception:
            log.exception("delivery failed", relay=url)
        finally:
            self._carried.discard(errand)
            self._hosts[_host(url)] -= 1
            self._hosts = +self._hosts  # hosts without an errand are forgotten


class Outbox:
    """Call `drain` again and again."""

    def __init__(self, store: Store, outlet: Outlet, clock: Clock, strangers: Strangers) -> None:
        self._store, self._outlet, self._clock = store, outlet, clock
        self._strangers = strangers

    async def drain(self) -> int:
        """Try everything that is due once; how many items that were."""
        items = await self._store.read(lambda tx: tx.outbox(self._clock.now(), BATCH))
        if items:
            left: dict[int, list[str]] = {}
            async with trio.open_nursery() as nursery:
                for item in items:
                    nursery.start_soon(self._deliver, item, left)
            await self._store.write(lambda tx: _record(tx, items, left, self._clock.now()))
        return len(items)

    async def _deliver(self, item: OutboxItem, left: dict[int, list[str]]) -> None:
        try:
            event = verify_event(parse_event_json_untrusted(item.event_json))
            own = [url for url in item.relay_urls if self._outlet.is_ours(url)]
            left[item.item_id] = [
                *await self._outlet.deliver(event, own),
                *self._hand_over(event, item, [url for url in item.relay_urls if url not in own]),
            ]
        except Exception:
            # One item's surprise must not hold up all others.
            log.exception("outbox item failed", item_id=item.item_id)
            left[item.item_id] = list(item.relay_urls)

    def _hand_over(self, event: VerifiedEvent, item: OutboxItem, urls: Sequence[str]) -> list[str]:
        """Those that do not have it yet, while it is worth trying."""
        if item.attempts >= STRANGERS_TRIES:
            return []
        missing = [url for url in urls if not self._strangers.has(event, url)]
        for url in missing:
            self._strangers.carry(event, url)
        return missing


def _record(tx: Tx, items: Sequence[OutboxItem], left: dict[int, list[str]], now: int) -> None:
    for item in items:
        if left[item.item_id] and item.attempts < TRIES:
            wait_s = min(MOST_WAIT_S, 2 ** min(item.attempts, 10))
            tx.outbox_later(item.item_id, now + wait_s, left[item.item_id])
        else:
            tx.outbox_sent(item.item_id)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
