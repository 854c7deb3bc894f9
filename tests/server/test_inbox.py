"""Admission: fresh, valid, once, not too often, and never a bot answering a bot."""

import pytest
import trio

from bot.adapters.seen_store import SeenStore
from bot.server.inbox import CLIENT_TAG, Inbox, InboxPolicy, Verdict
from nips import kinds
from nips.event import sign_event
from nips.keys import SecretKey

NOW = 1_800_000_000
OURS, THEM = SecretKey.generate(), SecretKey.generate()


@pytest.fixture
def seen(tmp_path):
    store = SeenStore(tmp_path / "seen.sqlite")
    yield store
    store.close()


@pytest.fixture
def inbox(seen):
    return Inbox(
        OURS.pubkey, seen, InboxPolicy(caller_burst=5, caller_per_minute=60, replies_per_thread=2)
    )


def rpc(at=NOW, key=THEM, kind=kinds.RPC, tags=(), content="x"):
    return sign_event(key, kind, content, tags, at)


async def test_a_good_event_is_admitted_once(inbox):
    event = rpc()

    assert Verdict.ADMIT is await inbox.admit(event, NOW)
    assert Verdict.IGNORE is await inbox.admit(event, NOW)


async def test_the_same_event_at_the_same_moment_is_admitted_once(inbox):
    event, verdicts = rpc(), []

    async def admit():
        verdicts.append(await inbox.admit(event, NOW))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(admit)

    assert verdicts.count(Verdict.ADMIT) == 1


async def test_a_replay_after_a_restart_is_not_admitted(tmp_path):
    event = rpc()
    for expected in (Verdict.ADMIT, Verdict.IGNORE):
        store = SeenStore(tmp_path / "seen.sqlite")
        assert expected is await Inbox(OURS.pubkey, store, InboxPolicy()).admit(event, NOW + 60)
        store.close()


@pytest.mark.parametrize("offset", [-121, 121, -10_000, 10_000])
async def test_stale_and_future_events_are_ignored(inbox, offset):
    assert Verdict.IGNORE is await inbox.admit(rpc(NOW + offset), NOW)
    assert dict(inbox.refused) == {"stale": 1}


async def test_an_id_is_remembered_as_long_as_it_could_be_replayed(inbox, seen):
    """Dated at the window's future edge, an event stays fresh for two windows."""
    event = rpc(NOW + 120)
    assert Verdict.ADMIT is await inbox.admit(event, NOW)
    await seen.prune(NOW + 240)
    assert Verdict.IGNORE is await inbox.admit(event, NOW + 240)
    assert dict(inbox.refused) == {"replay": 1}
    assert await seen.prune(NOW + 241) == 1


async def test_expired_wrong_kind_and_own_are_ignored(inbox):
    cases = [
        rpc(tags=[("expiration", str(NOW - 1))]),
        rpc(tags=[("expiration", "soon")]),
        rpc(kind=4),
        rpc(key=OURS),
    ]
    for event in cases:
        assert Verdict.IGNORE is await inbox.admit(event, NOW)
    assert dict(inbox.refused) == {"expired": 2, "kind": 1, "own": 1}


async def test_a_callers_rate_is_limited_and_recovers(inbox):
    verdicts = [await inbox.admit(rpc(content=str(n)), NOW) for n in range(7)]

    assert verdicts == [Verdict.ADMIT] * 5 + [Verdict.RATE_LIMITED] * 2
    other = await inbox.admit(rpc(key=SecretKey.generate()), NOW)
    assert Verdict.ADMIT is other
    assert Verdict.ADMIT is await inbox.admit(rpc(NOW + 2, content="later"), NOW + 2)


async def test_everybodys_rate_is_limited(seen):
    inbox = Inbox(OURS.pubkey, seen, InboxPolicy(total_burst=3, total_per_minute=1))
    verdicts = [await inbox.admit(rpc(key=SecretKey.generate()), NOW) for _ in range(4)]

    assert Verdict.RATE_LIMITED is verdicts[-1]


async def test_another_instances_notes_are_never_answered(inbox):
    note = rpc(kind=kinds.NOTE, tags=[CLIENT_TAG])

    assert Verdict.IGNORE is await inbox.admit(note, NOW)


async def test_a_thread_gets_only_so_many_replies(inbox):
    root = rpc(kind=kinds.NOTE)
    for n in range(3):
        reply = rpc(kind=kinds.NOTE, content=str(n), tags=[("e", root.id, "", "root")])
        verdict = await inbox.admit(reply, NOW)
        assert (Verdict.ADMIT if n < 2 else Verdict.IGNORE) is verdict
        inbox.count_reply(reply)


async def test_many_at_once_share_few_commits(seen):
    writes = []
    write = seen._write
    seen._write = lambda rows: (writes.append(len(rows)), write(rows))
    async with trio.open_nursery() as nursery:
        for n in range(200):
            nursery.start_soon(seen.record, f"{n:064x}", NOW)

    assert sum(writes) == 200
    assert len(writes) < 20


async def test_one_cancelled_writer_does_not_lose_the_others_ids(seen, tmp_path):
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(trio.Cancelled):
                await seen.record("a" * 64, NOW)
        for n in range(10):
            nursery.start_soon(seen.record, f"{n:064x}", NOW)

    again = SeenStore(tmp_path / "seen.sqlite")
    assert all(f"{n:064x}" in again for n in range(10))
    again.close()
