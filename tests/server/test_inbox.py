"""Admission: fresh, valid, once, not too often, and never a bot answering a bot."""

import sqlite3
from contextlib import ExitStack, closing

import pytest
import trio

from bot.adapters.seen_store import SeenStore
from bot.server.inbox import CLIENT_TAG, Admission, Inbox, InboxPolicy
from nips import kinds
from nips.event import sign_event
from nips.keys import SecretKey
from tests.fakes import FakeClock

NOW = 1_800_000_000
OURS, THEM = SecretKey.generate(), SecretKey.generate()


@pytest.fixture
def clock():
    return FakeClock(unix=NOW)


@pytest.fixture
def open_store(tmp_path, clock):
    """Opens ids on file; all are closed in the end."""
    with ExitStack() as stack:

        def opened(name="seen", **kwargs):
            store = SeenStore(tmp_path / f"{name}.sqlite", clock, **kwargs)
            stack.callback(store.close)
            return store

        yield opened


@pytest.fixture
def seen(open_store):
    return open_store()


@pytest.fixture
def refused(open_store):
    return open_store("refused")


@pytest.fixture
def inbox(seen, refused):
    policy = InboxPolicy(
        caller_burst=5, caller_per_minute=60, replies_per_thread=2, refusals_burst=3, refusals_per_minute=1
    )  # fmt: skip
    return Inbox(OURS.pubkey, seen, refused, policy)


def rpc(at=NOW, key=THEM, kind=kinds.RPC, tags=(), content="x"):
    return sign_event(key, kind, content, tags, at)


async def test_a_good_event_is_admitted_once(inbox):
    event = rpc()

    assert Admission.ACT is await inbox.admit(event, NOW)
    assert Admission.IGNORE is await inbox.admit(event, NOW)


async def test_the_same_event_at_the_same_moment_is_admitted_once(inbox):
    event, verdicts = rpc(), []

    async def admit():
        verdicts.append(await inbox.admit(event, NOW))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(admit)

    assert verdicts.count(Admission.ACT) == 1


async def test_a_replay_after_a_restart_is_not_admitted(open_store, refused):
    event = rpc()
    for expected in (Admission.ACT, Admission.IGNORE):
        restarted = Inbox(OURS.pubkey, open_store(), refused, InboxPolicy())
        assert await restarted.admit(event, NOW + 60) is expected


@pytest.mark.parametrize("offset", [-601, 601, -10_000, 10_000])
async def test_notes_of_another_time_are_ignored(inbox, offset):
    assert await inbox.admit(rpc(NOW + offset, kind=kinds.NOTE), NOW) is Admission.IGNORE
    assert dict(inbox.ignored) == {"misdated": 1}


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (-86_401, Admission.IGNORE),
        (-86_400, Admission.MISDATED),
        (-121, Admission.MISDATED),
        (-120, Admission.ACT),
        (120, Admission.ACT),
        (121, Admission.MISDATED),
        (86_400, Admission.MISDATED),
        (86_401, Admission.IGNORE),
    ],
)
async def test_whose_clock_is_wrong_is_told_so(inbox, offset, expected):
    assert await inbox.admit(rpc(NOW + offset), NOW) is expected


async def test_a_misdated_request_is_told_once_and_never_acted_on(inbox, clock, seen, refused):
    """Neither when its time comes, nor a day later."""
    early = rpc(NOW + 300)
    first = await inbox.admit(early, NOW)
    later = []
    for _ in range(30):
        clock.advance(3_600 if later else 300)
        await seen.prune()
        await refused.prune()
        later.append(await inbox.admit(early, clock.now()))

    assert (first, {Admission.IGNORE}) == (Admission.MISDATED, set(later))


async def test_an_expired_request_is_told_once(inbox):
    event = rpc(tags=[("expiration", str(NOW - 1))])
    told = [await inbox.admit(event, NOW) for _ in range(3)]

    assert told == [Admission.EXPIRED, Admission.IGNORE, Admission.IGNORE]


async def test_replaying_somebodys_old_requests_costs_him_nothing(inbox):
    """They use up his refusals, not his requests."""
    told = [await inbox.admit(rpc(NOW - 1_000, content=str(n)), NOW) for n in range(10)]
    good = [await inbox.admit(rpc(content=str(n)), NOW) for n in range(5)]

    assert told == [Admission.MISDATED] * 3 + [Admission.IGNORE] * 7
    assert good == [Admission.ACT] * 5


async def test_everybodys_refusals_are_limited(seen, open_store):
    policy = InboxPolicy(total_refusals_burst=2, total_refusals_per_minute=1)
    old = [rpc(NOW - 1_000, key=SecretKey.generate()) for _ in range(4)]
    few = Inbox(OURS.pubkey, seen, open_store("few", most=1), InboxPolicy())
    by_rate = Inbox(OURS.pubkey, seen, open_store("refused"), policy)

    for inbox, told in ((by_rate, 2), (few, 1)):
        answers = [await inbox.admit(event, NOW) for event in old]
        assert answers == [Admission.MISDATED] * told + [Admission.IGNORE] * (4 - told)


async def test_what_cannot_be_remembered_is_not_acted_on(open_store, refused, clock):
    small = open_store("small", most=2)
    inbox = Inbox(OURS.pubkey, small, refused, InboxPolicy())
    events = [rpc(content=str(n)) for n in range(3)]
    assert [Admission.ACT] * 2 + [Admission.IGNORE] == [
        await inbox.admit(event, NOW) for event in events
    ]
    clock.advance(121)
    await small.prune()

    assert await inbox.admit(rpc(clock.now()), clock.now()) is Admission.ACT


async def test_an_id_is_remembered_as_long_as_it_could_be_replayed(inbox, seen, clock):
    """Dated at the window's future edge, an event stays fresh for two windows."""
    event = rpc(NOW + 120)
    assert await inbox.admit(event, NOW) is Admission.ACT
    clock.advance(240)
    assert await seen.prune() == 0
    assert await inbox.admit(event, NOW + 240) is Admission.IGNORE
    assert dict(inbox.ignored) == {"replay": 1}
    clock.advance(1)
    assert await seen.prune() == 1


@pytest.mark.parametrize("restart", [False, True])
async def test_a_clock_that_jumps_ahead_and_back_makes_nothing_new_again(
    seen, refused, clock, open_store, restart
):
    event = rpc()
    assert (
        await Inbox(OURS.pubkey, seen, refused, InboxPolicy()).admit(event, NOW) is Admission.ACT
    )
    clock.unix += 86_400
    if restart:
        seen = open_store()
    await seen.prune()
    clock.unix -= 86_400
    clock.advance(30)
    inbox = Inbox(OURS.pubkey, seen, refused, InboxPolicy())

    assert await inbox.admit(event, clock.now()) is Admission.IGNORE
    clock.advance(91)
    assert await seen.prune() == 1, "it leaves when it is stale by both clocks"


async def test_what_an_older_file_remembers_is_kept(tmp_path, clock):
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID")
        db.execute("INSERT INTO seen VALUES (?, ?)", ("ab" * 32, NOW + 100))
    for _ in range(2):
        store = SeenStore(path, clock)
        assert "ab" * 32 in store
        store.close()


async def test_wrong_kind_and_own_are_ignored(inbox):
    for event in (rpc(kind=4), rpc(key=OURS)):
        assert await inbox.admit(event, NOW) is Admission.IGNORE
    assert dict(inbox.ignored) == {"kind": 1, "own": 1}


async def test_a_callers_rate_is_limited_and_recovers(inbox):
    verdicts = [await inbox.admit(rpc(content=str(n)), NOW) for n in range(7)]

    assert verdicts == [Admission.ACT] * 5 + [Admission.RATE_LIMITED] * 2
    other = await inbox.admit(rpc(key=SecretKey.generate()), NOW)
    assert Admission.ACT is other
    assert Admission.ACT is await inbox.admit(rpc(NOW + 2, content="later"), NOW + 2)


async def test_everybodys_rate_is_limited(seen, refused):
    inbox = Inbox(OURS.pubkey, seen, refused, InboxPolicy(total_burst=3, total_per_minute=1))
    verdicts = [await inbox.admit(rpc(key=SecretKey.generate()), NOW) for _ in range(4)]

    assert Admission.RATE_LIMITED is verdicts[-1]


async def test_another_instances_notes_are_never_answered(inbox):
    note = rpc(kind=kinds.NOTE, tags=[CLIENT_TAG])

    assert Admission.IGNORE is await inbox.admit(note, NOW)


async def test_a_thread_gets_only_so_many_replies(inbox):
    root = rpc(kind=kinds.NOTE)
    for n in range(3):
        reply = rpc(kind=kinds.NOTE, content=str(n), tags=[("e", root.id, "", "root")])
        verdict = await inbox.admit(reply, NOW)
        assert (Admission.ACT if n < 2 else Admission.IGNORE) is verdict
        inbox.count_reply(reply)


async def test_many_at_once_share_few_commits(seen, tmp_path):
    with closing(sqlite3.connect(tmp_path / "seen.sqlite", isolation_level=None)) as watcher:
        wal = (tmp_path / "seen.sqlite-wal").stat().st_size
        async with trio.open_nursery() as nursery:
            for n in range(200):
                nursery.start_soon(seen.record, f"{n:064x}", 100)
        assert watcher.execute("SELECT count(*) FROM kept").fetchone() == (200,)

    # Each commit writes a page of 4 KiB at least; 200 would make 800 KiB.
    assert (tmp_path / "seen.sqlite-wal").stat().st_size - wal < 200 * 1_024


async def test_one_cancelled_writer_does_not_lose_the_others_ids(seen, open_store):
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(trio.Cancelled):
                await seen.record("a" * 64, 100)
        for n in range(10):
            nursery.start_soon(seen.record, f"{n:064x}", NOW)

    again = open_store()
    assert all(f"{n:064x}" in again for n in range(10))
