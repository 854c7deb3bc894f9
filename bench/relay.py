"""The embedded relay's store with 100,000 events: what it costs to fill it, to ask it, and to tell who listens."""

import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import trio

from bot.relay.event_search import Allowance, EventSearch
from bot.relay.event_store import EventStore, Room
from bot.relay.event_tables import Budget
from bot.relay.subscriptions import Subscriptions, Weight
from nips.event import Event
from nips.filters import Filter

EVENTS, AUTHORS, BATCH = 100_000, 1_000, 500
NOW = 1_795_000_000
ROUNDS = 30
US = f"{1:064x}"


def event(number: int) -> Event:
    """One of many: a thousand authors, five kinds, a tenth addressed to us. Nothing here checks signatures."""
    author, event_id = (
        f"{number % AUTHORS + 2:064x}",
        f"{number * 0x9E3779B97F4A7C15 % 2**64:064x}",
    )
    tags = (("p", US if number % 10 == 0 else author), ("t", f"topic {number % 300}"))
    return Event(event_id, author, NOW - number, number % 5 + 1_000, tags, "x" * 300, "0" * 128)


async def fill(store: EventStore, count: int) -> float:
    """Events a second, as many at once as clients would send."""
    began = perf_counter()
    for first in range(0, count, BATCH):
        async with trio.open_nursery() as nursery:
            for number in range(first, first + BATCH):
                nursery.start_soon(store.add, event(number), Budget.STRANGERS, NOW)
    return count / (perf_counter() - began)


QUERIES = {
    "newest 500": Filter(),
    "500 addressed to us": Filter(tags={"p": frozenset({US})}),
    "one author and kind": Filter(
        authors=frozenset({f"{500:064x}"}), kinds=frozenset({1_000, 1_001, 1_002, 1_003})
    ),
    "1,000 authors": Filter(authors=frozenset(f"{n + 2:064x}" for n in range(AUTHORS))),
    "a kind, a topic": Filter(kinds=frozenset({1_001}), tags={"t": frozenset({"topic 1"})}),
    "20 ids": Filter(ids=frozenset(event(n).id for n in range(20))),
    "nothing, looked for everywhere": Filter(
        authors=frozenset(f"{n + 2:064x}" for n in range(AUTHORS)),
        tags={"x": frozenset({"none"})},
    ),
}


def ask(search: EventSearch, wanted: Filter) -> tuple[float, int]:
    """Milliseconds, events found; as a client's filter is answered, with its allowance."""
    began = perf_counter()
    found = search.find(wanted, 500, NOW, Allowance(50_000, 0.25))
    search.fetch(event_id for _, event_id, _ in found.rows)
    return (perf_counter() - began) * 1_000, len(found.rows)


def fan_out(subscribers: int) -> float:
    """Microseconds for an event that one of so many wants."""
    most = Weight(10**6, 10**6)
    live: Subscriptions[int] = Subscriptions(most, most, most)
    for n in range(subscribers):
        live.add(
            n, n, "s", (Filter(kinds=frozenset({1_000}), tags={"p": frozenset({f"{n:064x}"})}),)
        )
    sample: Sequence[Event] = [event(n) for n in range(0, 5_000, 50)]
    began = perf_counter()
    for one in sample:
        live.wanting(one)
    return (perf_counter() - began) / len(sample) * 1e6


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


async def measure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        before = rss_mib()
        room = Room(10**6, 1 << 30)
        store = EventStore(dict.fromkeys(Budget, room), Path(folder) / "relay.sqlite")
        search = EventSearch(store.path, store.keys)
        rate = await fill(store, EVENTS)
        size = store.path.stat().st_size / 2**20
        print(
            f"  fill: {rate:,.0f} events/s; file {size:.0f} MiB; RSS +{rss_mib() - before:.0f} MiB"
        )
        for name, wanted in QUERIES.items():
            told = [ask(search, wanted) for _ in range(ROUNDS)]
            ms = sorted(ms for ms, _ in told)
            print(
                f"  {name}: {told[0][1]} found, median {median(ms):.2f} ms, worst {ms[-1]:.2f} ms"
            )
        print(f"  RSS +{rss_mib() - before:.0f} MiB after all queries")
        search.close()
        store.close()


def run() -> None:
    print(f"relay: {EVENTS:,} events of {AUTHORS:,} authors stored")
    trio.run(measure)
    for subscribers in (100, 5_000):
        print(
            f"  fan-out among {subscribers:,} subscriptions: {fan_out(subscribers):.1f} us an event"
        )
