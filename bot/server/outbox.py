"""Publishes what the handlers queued in their transactions, until every relay named has it."""

import trio

from bot.server.outlet import Outlet
from handlers.ports import Clock, Store
from handlers.records import OutboxItem
from nips.event import parse_event_json_untrusted, verify_event

BATCH = 100
AT_ONCE = 8
GIVE_UP_S = 6 * 3600
MOST_WAIT_S = 600


async def drain(store: Store, outlet: Outlet, clock: Clock) -> int:
    """Try everything that is due once; how many items that were."""
    items = await store.read(lambda tx: tx.outbox(clock.now(), BATCH))
    limiter = trio.CapacityLimiter(AT_ONCE)
    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(_deliver, store, outlet, clock, item, limiter)
    return len(items)


async def _deliver(
    store: Store, outlet: Outlet, clock: Clock, item: OutboxItem, limiter: trio.CapacityLimiter
) -> None:
    async with limiter:
        missing = await outlet.deliver(
            verify_event(parse_event_json_untrusted(item.event_json)), item.relay_urls
        )
    now = clock.now()
    if not missing or now - item.created_at > GIVE_UP_S:
        await store.write(lambda tx: tx.outbox_sent(item.item_id))
    else:
        wait_s = min(MOST_WAIT_S, 2 ** min(item.attempts, 10))
        await store.write(lambda tx: tx.outbox_later(item.item_id, now + wait_s, missing))
