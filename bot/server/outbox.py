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
from handlers.context import Context
from handlers.intents import seal
from handlers.records import Intent, OutboxItem
from handlers.tables import Tx
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
    """``once`` is one round of everything that is due."""

    def __init__(self, ctx: Context, outlet: Outlet, strangers: Strangers) -> None:
        self._ctx, self._outlet, self._strangers = ctx, outlet, strangers

    async def once(self, ctx: Context) -> None:
        """Round after round, while there is more than one holds."""
        while await self.drain() == BATCH:
            pass

    async def drain(self) -> int:
        """Try everything that is due once; how many items that were."""
        store, clock = self._ctx.store, self._ctx.clock
        items = await store.read(lambda tx: tx.outbox.list_due(clock.now(), BATCH))
        if items:
            left: dict[int, list[str]] = {}
            async with trio.open_nursery() as nursery:
                for item in items:
                    nursery.start_soon(self._deliver, item, left)
            await store.write(_record, items, left, clock.now())
        return len(items)

    async def _deliver(self, item: OutboxItem, left: dict[int, list[str]]) -> None:
        left[item.item_id] = list(item.relay_urls or self._ctx.presence.relay_urls)
        try:
            sealed = await self._sealed(item)
            if sealed is None:
                left[item.item_id] = []
                return
            event, relay_urls = sealed
            own = [url for url in relay_urls if self._outlet.is_ours(url)]
            left[item.item_id] = [
                *await self._outlet.deliver(event, own),
                *self._hand_over(event, item, [url for url in relay_urls if url not in own]),
            ]
        except Exception:
            # One item's surprise must not hold up all others.
            log.exception("outbox item failed", item_id=item.item_id)

    async def _sealed(self, item: OutboxItem) -> tuple[VerifiedEvent, Sequence[str]] | None:
        """The event, and where it goes. What was an intent becomes one event, which is the same at every try."""
        own_urls = self._ctx.presence.relay_urls
        if item.intent is Intent.EVENT:
            event = verify_event(parse_event_json_untrusted(item.body))
            return event, item.relay_urls or own_urls
        made = await seal(self._ctx, item)
        if made is not None:
            event, strangers = made
            urls = tuple(dict.fromkeys([*strangers, *own_urls]))
            await self._ctx.store.write(lambda tx: tx.outbox.become(item.item_id, event, urls))
            return event, urls
        return None

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
            tx.outbox.put_off(item.item_id, now + wait_s, left[item.item_id])
        else:
            tx.outbox.sent(item.item_id)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
