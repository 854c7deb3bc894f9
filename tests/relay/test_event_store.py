"""What the store keeps, finds and lets go: against `Filter.matches`, and under floods."""

import shutil
import sqlite3
from contextlib import contextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bot.relay.event_search import Allowance, EventSearch
from bot.relay.event_store import GRACE_S, EventStore, Room
from bot.relay.event_tables import Budget
from nips.event import Event, parse_event_json_untrusted
from nips.filters import Filter
from nips.nip40 import is_expired

NOW = 1_795_000_000
ROOM = Room(100_000, 1 << 28)
AUTHORS = [f"{n:064x}" for n in range(1, 5)]
made_events = st.builds(
    lambda author, kind, age, tags: made(author, kind, NOW - age, tags),
    st.sampled_from(AUTHORS),
    st.sampled_from([1, 7, 5_000]),
    st.integers(0, 5),
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("pet"), st.sampled_from([*AUTHORS, "x", ""])),
            st.tuples(st.just("expiration"), st.sampled_from([str(NOW - 1), str(NOW + 9)])),
            st.just(("p",)),
        ),
        max_size=3,
    ),
)
some_authors = st.frozensets(st.sampled_from(AUTHORS), max_size=3)
filters = st.builds(
    Filter,
    authors=st.none() | some_authors,
    kinds=st.none() | st.frozensets(st.sampled_from([1, 7, 9]), max_size=2),
    tags=st.dictionaries(
        st.sampled_from("pet"),
        st.frozensets(st.sampled_from([*AUTHORS, "x", ""]), max_size=3),
        max_size=2,
    ),
    since=st.none() | st.integers(NOW - 6, NOW + 1),
    until=st.none() | st.integers(NOW - 6, 2**63),
)
counter = iter(range(1, 10**9))


def made(author=AUTHORS[0], kind=1, at=NOW, tags=(), content="", event_id=None):
    """The store checks no signatures: that is done before."""
    event_id = event_id or f"{next(counter) * 0x9E3779B97F4A7C15 % 2**64:064x}"
    return Event(event_id, author, at, kind, tuple(map(tuple, tags)), content, "0" * 128)


@contextmanager
def opened(room=ROOM, path=None, own=ROOM, max_file_bytes=None):
    rooms = {Budget.STRANGERS: room, Budget.SERVED: own, Budget.OWN: own}
    store = EventStore(rooms, path, max_file_bytes)
    search = EventSearch(store.path, store.keys)
    try:
        yield store, search
    finally:
        search.close()
        store.close()


def found(search, wanted, limit=500, *, rows=10**9, now=NOW, **options):
    told = search.find(wanted, limit, now, Allowance(rows, 60), **options)
    return [parse_event_json_untrusted(text) for text in search.fetch(i for _, i, _ in told.rows)]


async def add(store, *events, budget=Budget.STRANGERS, now=NOW, **options):
    return [await store.add(event, budget, now, **options) for event in events]


def nip01(events):
    return sorted(events, key=lambda e: (-e.created_at, e.id))


@given(st.lists(made_events, max_size=25), st.lists(filters, min_size=1, max_size=5))
def test_the_search_finds_what_the_filter_matches_in_order(events, wanted):
    with opened() as (store, search):

        async def fill():
            async with trio.open_nursery() as nursery:
                for event in events:
                    nursery.start_soon(store.add, event, Budget.STRANGERS, NOW)

        trio.run(fill)
        for one in [*wanted, Filter(ids=frozenset(e.id for e in events[::2]))]:
            matching = nip01(e for e in events if one.matches(e) and not is_expired(e, NOW))
            assert found(search, one) == matching
            assert found(search, one, 2) == matching[:2]


async def test_ten_events_of_one_second_with_limit_three():
    events = [made(content=str(n)) for n in range(10)]
    with opened() as (store, search):
        await add(store, *events)
        newest = nip01(events)[:3]
        assert found(search, Filter(kinds=frozenset({1})), 3) == newest
        assert [e.id for e in newest] == sorted(e.id for e in events)[:3]


async def test_an_allowance_ends_a_search_and_what_was_found_is_the_newest():
    events = [made(at=NOW - n, tags=[("t", "x" if n % 100 == 0 else "y")]) for n in range(3_000)]
    with opened() as (store, search):
        async with trio.open_nursery() as nursery:
            for event in events:
                nursery.start_soon(store.add, event, Budget.STRANGERS, NOW)
        wanted = Filter(authors=frozenset({AUTHORS[0]}), tags={"t": frozenset({"x"})})
        told = search.find(wanted, 500, NOW, Allowance(1_500, 60))
        assert not told.is_all
        ids = [e.id for e in events[::100]]
        assert [event_id.hex() for _, event_id, _ in told.rows] == ids[: len(told.rows)]
        assert 1 <= len(told.rows) < 30
        assert search.find(wanted, 500, NOW, Allowance(10**6, 60)).is_all
        assert not search.find(wanted, 500, NOW, Allowance(10**6, -1)).is_all


async def test_a_flood_drowns_itself_and_nobody_who_is_quiet():
    """One author, and many: who has most gives way; classes do not reach into each other."""
    quiet = made(AUTHORS[1], content="quiet", at=NOW - 9_000)
    ours = made(AUTHORS[2], content="ours", at=NOW - 9_000)
    wallet = made(AUTHORS[3], content="wallet", at=NOW - 9_000)
    with opened(Room(50, 1 << 20)) as (store, search):
        await add(store, quiet)
        await add(store, ours, budget=Budget.OWN)
        await add(store, wallet, budget=Budget.SERVED)
        flood = [made(at=NOW - 500 + n) for n in range(300)]
        await add(store, *flood)
        left = found(search, Filter())
        assert {"quiet", "ours", "wallet"} <= {e.content for e in left}
        assert nip01(flood)[:49] == [e for e in left if not e.content], "its own oldest left"
        # From a new key for each event there is nobody who has more: strangers' oldest goes.
        await add(store, *(made(f"{n:064x}") for n in range(100, 200)))
        left = found(search, Filter())
        assert {"ours", "wallet"} == {e.content for e in left} - {""}
        assert 50 == (await store.size())[Budget.STRANGERS].events


async def test_the_file_is_bounded_in_bytes_and_counts_what_indexes_take(tmp_path):
    path = tmp_path / "relay.sqlite"
    with opened(Room(10**9, 2 << 20), path) as (store, _):
        for n in range(60):
            tags = [("t", f"{n} {m}") for m in range(1_500)]
            await add(store, made(f"{n:064x}", tags=tags), now=NOW)
        size = (await store.size())[Budget.STRANGERS]
        assert 1 << 20 < size.bytes <= 2 << 20
    assert path.stat().st_size < 6 << 20


async def test_deleted_addresses_and_ids_leave_no_trace_beyond_their_room(tmp_path):
    """1,200,000 names that never existed, deleted a thousand at a time."""
    path = tmp_path / "relay.sqlite"
    with opened(Room(10**9, 4 << 20), path) as (store, _):
        sizes = []
        for n in range(120):
            tags = [("a", f"30000:{AUTHORS[0]}:{n}.{m}") for m in range(500)]
            tags += [("e", f"{n:032x}{m:032x}") for m in range(500)]
            await add(store, made(kind=5, tags=tags))
            sizes.append(path.stat().st_size)
        assert (await store.size())[Budget.STRANGERS].bytes <= 4 << 20
        assert sizes[-1] < 12 << 20
        assert sizes[-1] <= sizes[60] * 1.2


async def test_deletions_delete_ones_own_and_keep_it_away(tmp_path):
    path = tmp_path / "relay.sqlite"
    mine, later = made(), made(AUTHORS[0], 30_000, NOW + 5, [("d", "a")])
    theirs, addressed = made(AUTHORS[1]), made(AUTHORS[0], 30_000, NOW - 5, [("d", "a")])
    tags = [("e", mine.id), ("e", theirs.id), ("a", f"30000:{AUTHORS[0]}:a")]
    deletion = made(kind=5, tags=tags)
    with opened(path=path) as (store, search):
        await add(store, mine, theirs, addressed, deletion)
        assert {theirs.id, deletion.id} == {e.id for e in found(search, Filter())}
    with opened(path=path) as (store, search):
        reasons = await add(store, mine, addressed, later)
        assert [r.partition(":")[0] for r in reasons] == ["blocked", "blocked", ""]
        # A deletion cannot be deleted.
        assert await add(store, made(kind=5, tags=[("e", deletion.id)])) == [""]
        assert deletion.id in {e.id for e in found(search, Filter())}


async def test_a_deletion_that_deletes_nothing_is_only_kept_for_whom_it_may_matter():
    event = made()
    with opened() as (store, search):
        nothing = made(kind=5, tags=[("e", event.id)])
        (reason,) = await add(store, nothing, if_it_deletes=True)
        assert reason.startswith("restricted:")
        await add(store, event)
        assert await add(store, nothing, if_it_deletes=True) == [""]
        assert [nothing.id] == [e.id for e in found(search, Filter())]


async def test_events_end_and_so_do_deletions():
    short = made(tags=[("expiration", str(NOW + 100))])
    long = made(tags=[("expiration", str(NOW + 1_000_000))])
    with opened() as (store, search):
        await add(store, short, long, budget=Budget.OWN)
        assert [] == [e for e in found(search, Filter(), now=NOW + 100) if e.id == short.id]
        await store.tidy(NOW + 100)
        assert 1 == (await store.size())[Budget.OWN].events
        await add(store, made(kind=5, tags=[("e", long.id)]), budget=Budget.OWN)
        await store.tidy(NOW + 1_000_000 + GRACE_S - 1)
        assert 1 == (await store.size())[Budget.OWN].events, "as long as it could be shown"
        await store.tidy(NOW + 1_000_000 + GRACE_S)
        assert 0 == (await store.size())[Budget.OWN].events


async def test_whose_an_event_is_survives_a_restart(tmp_path):
    path = tmp_path / "relay.sqlite"
    small = Room(5, 1 << 20)
    with opened(small, path) as (store, _):
        await add(store, made(content="ours"), budget=Budget.OWN)
        await add(store, made(AUTHORS[1], content="escrow"))
        await store.serve("escrow", frozenset({AUTHORS[1]}))
    with opened(small, path) as (store, search):
        assert store.served() == {"escrow": frozenset({AUTHORS[1]})}
        for n in range(50):
            await add(store, made(f"{n + 100:064x}", at=NOW + n))
        assert {"ours", "escrow"} <= {e.content for e in found(search, Filter())}
        assert {"ours", "escrow"} == {e.content for e in found(search, Filter(), kept_only=True)}


async def test_what_a_stranger_brought_becomes_ours_when_we_publish_it():
    event = made()
    with opened() as (store, _):
        await add(store, event)
        assert await add(store, event, budget=Budget.OWN) == ["duplicate: already have this event"]
        sizes = await store.size()
        assert (0, 1) == (sizes[Budget.STRANGERS].events, sizes[Budget.OWN].events)
        # And what replaces ours, from wherever it comes, stays ours.
        await add(store, made(kind=0, at=NOW - 1), budget=Budget.OWN)
        await add(store, made(kind=0))
        sizes = await store.size()
        assert (0, 2) == (sizes[Budget.STRANGERS].events, sizes[Budget.OWN].events)


async def test_who_is_cancelled_takes_nobody_with_him():
    events = [made(content=str(n)) for n in range(50)]
    with opened() as (store, search):
        async with trio.open_nursery() as nursery:
            for n, event in enumerate(events):
                scope = trio.CancelScope()

                async def one(event=event, scope=scope):
                    with scope:
                        await store.add(event, Budget.STRANGERS, NOW)

                nursery.start_soon(one)
                if n % 2:
                    nursery.start_soon(trio.sleep, 0)
                    scope.deadline = trio.current_time() + 0.001
        kept = {e.content for e in found(search, Filter())}
        assert {str(n) for n in range(0, 50, 2)} <= kept


async def test_a_full_disk_is_told_and_passes(tmp_path):
    path = tmp_path / "relay.sqlite"
    with opened(path=path, max_file_bytes=200_000) as (store, search):
        await add(store, made(content="before"))
        reasons = await add(store, *(made(content="x" * 100_000) for _ in range(4)))
        assert "error: this relay cannot store anything now" == reasons[-1]
        assert "before" in {e.content for e in found(search, Filter())}, "reading goes on"
        # What is smaller than what is left still fits; and with more room, all is well.
    with opened(path=path) as (store, _):
        assert await add(store, made(content="after")) == [""]


async def test_one_that_cannot_be_stored_takes_no_other_with_it():
    huge = made(content="x" * 3_000_000)
    events = [made(content=str(n)) for n in range(20)]
    reasons = {}
    with opened(max_file_bytes=2_000_000) as (store, search):

        async def one(event):
            reasons[event.id] = await store.add(event, Budget.STRANGERS, NOW)

        async with trio.open_nursery() as nursery:
            for event in [*events[:10], huge, *events[10:]]:
                nursery.start_soon(one, event)
        assert reasons.pop(huge.id).startswith("error:")
        assert set(reasons.values()) == {""}
        assert len(found(search, Filter())) == 20


async def test_a_crash_while_an_earlier_store_is_carried_over_loses_nothing(tmp_path, monkeypatch):
    path, event = tmp_path / "before" / "relay.sqlite", made(content="old")
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE event (id TEXT PRIMARY KEY, created_at INTEGER, event TEXT)")
    db.execute("INSERT INTO event VALUES ('x', 1, ?)", (event.json.decode(),))
    db.commit()
    db.close()

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("bot.relay.event_store.parse_event_json_untrusted", crash)
        with pytest.raises(KeyboardInterrupt), opened(path=path):
            pass
    # The files as a kill leaves them: the one that failed still holds its lock.
    left = shutil.copytree(path.parent, tmp_path / "after")
    with opened(path=left / path.name) as (_, search):
        assert found(search, Filter()) == [event]


async def test_the_store_of_an_earlier_version_is_carried_over(tmp_path):
    path, event = tmp_path / "relay.sqlite", made(content="old")
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE event (id TEXT PRIMARY KEY, created_at INTEGER, event TEXT)")
    for text in (event.json.decode(), "not an event"):
        db.execute("INSERT INTO event VALUES (?, 1, ?)", (text[:9], text))
    db.commit()
    db.close()
    with opened(path=path) as (_, search):
        assert found(search, Filter()) == [event]
    with opened(path=path) as (_, search):
        assert found(search, Filter()) == [event]


async def test_a_later_version_is_not_touched(tmp_path):
    path = tmp_path / "relay.sqlite"
    with opened(path=path):
        pass
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(RuntimeError, match="newer"), opened(path=path):
        pass
