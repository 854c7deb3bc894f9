"""Checkpoints while the server runs: who waits for one, who is told that there is none, and who must stop."""

import sqlite3
from contextlib import closing

import pytest
import trio

from bot.boot.put_back import Folders, put_back
from bot.boot.unlock import Halted, Unlocker
from bot.checkpoint.blobs import is_manifest_name
from bot.checkpoint.restore import Progress
from bot.server import checkpoints
from bot.server.checkpoints import BOOKS, OTHERS, Checkpointer
from tests.checkpoint.keeper import MemoryBlobs


@pytest.fixture
async def place(escrow, tmp_path):
    """Booted once, with files to copy: (boot again, blobs, folder, what was told)."""
    for _ in range(3):
        escrow.add_service()
    code, blobs = escrow.code(), MemoryBlobs()

    async def boot():
        return await Unlocker(code.client, escrow.find_services, blobs, 3, 60, False).unlock()

    for name in (BOOKS, *OTHERS):
        with closing(sqlite3.connect(tmp_path / name)) as db, db:
            db.execute("CREATE TABLE t (n)")
    return boot, blobs, tmp_path


def write(folder, number, name=BOOKS):
    with closing(sqlite3.connect(folder / name)) as db, db:
        db.execute("INSERT INTO t VALUES (?)", (number,))


def written(folder, name=BOOKS):
    with closing(sqlite3.connect(folder / name)) as db:
        return [n for (n,) in db.execute("SELECT n FROM t")]


async def nobody(_):
    pass


def manifests(blobs):
    return sum(is_manifest_name(name) for name, _ in blobs.seen)


async def test_who_waits_is_told_when_it_would_be_restored(place, escrow, nursery, tmp_path):
    boot, _, folder = place
    checkpointer = Checkpointer(await boot(), folder, escrow.clock, nobody)
    nursery.start_soon(checkpointer.run)
    write(folder, 1)
    assert await checkpointer.reached()
    write(folder, 2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    await put_back(await boot(), Folders(elsewhere, None), Progress())
    assert ([1], []) == (written(elsewhere), written(elsewhere, OTHERS[0]))


async def test_many_who_wait_share_one_and_nothing_new_is_put_for_nothing_new(
    place, escrow, nursery
):
    boot, blobs, folder = place
    checkpointer = Checkpointer(await boot(), folder, escrow.clock, nobody)
    nursery.start_soon(checkpointer.run)
    assert await checkpointer.reached()
    before = manifests(blobs)
    reached = []

    async def wait(number):
        write(folder, number)
        reached.append(await checkpointer.reached())

    async with trio.open_nursery() as waiting:
        for number in range(30):
            waiting.start_soon(wait, number)
    assert [True] * 30 == reached
    assert 1 <= manifests(blobs) - before <= 5
    before = len(blobs.seen)
    assert await checkpointer.reached()
    assert before == len(blobs.seen)


async def test_a_keeper_that_fails_is_told_at_once_and_it_is_tried_again(
    place, escrow, nursery, monkeypatch
):
    monkeypatch.setattr(checkpoints, "RETRY_S", 0.05)
    boot, blobs, folder = place
    checkpointer = Checkpointer(await boot(), folder, escrow.clock, nobody)
    nursery.start_soon(checkpointer.run)
    assert await checkpointer.reached()
    write(folder, 1)
    blobs.puts, blobs.fails_at = 0, 1
    began = trio.current_time()
    assert not await checkpointer.reached()
    assert trio.current_time() - began < 5
    assert await checkpointer.reached()


async def test_services_that_do_not_answer_make_nothing_safe(place, escrow, nursery):
    boot, _, folder = place
    checkpointer = Checkpointer(await boot(), folder, escrow.clock, nobody)
    nursery.start_soon(checkpointer.run)
    away, escrow.lane.services = escrow.lane.services, {}
    assert not await checkpointer.reached()
    escrow.lane.services = away
    with trio.fail_after(20):
        while not await checkpointer.reached():
            pass


async def test_two_of_one_state_the_older_one_stops_and_says_why(place, escrow, monkeypatch):
    monkeypatch.setattr(checkpoints, "LOOK_S", 0.05)
    boot, _, folder = place
    told = []

    async def tell(text):
        told.append(text)

    older = Checkpointer(await boot(), folder, escrow.clock, tell)
    newer = Checkpointer(await boot(), folder, escrow.clock, nobody)
    with trio.fail_after(20), pytest.raises(Halted, match="another enclave was started"):
        await older.run()
    assert [checkpoints.OVERTAKEN] == told
    with pytest.raises(Halted):
        await older.last()
    assert await newer.last()


async def test_one_that_was_overtaken_lets_nothing_leave(place, escrow):
    """Even before it looks: whoever waits is never told yes."""
    boot, _, folder = place
    older = Checkpointer(await boot(), folder, escrow.clock, nobody)
    await boot()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with trio.open_nursery() as running:
            running.start_soon(older.run)
            write(folder, 1)
            assert not await older.reached()
            await trio.sleep(5)
    assert caught.group_contains(Halted)


async def test_what_is_there_is_newer_than_any_copy_and_stays(place, escrow, tmp_path):
    """The process died, and the machine did not."""
    boot, _, folder = place
    checkpointer = Checkpointer(await boot(), folder, escrow.clock, nobody)
    write(folder, 1)
    assert await checkpointer.last()
    write(folder, 2)
    await put_back(await boot(), Folders(folder, None), Progress())
    assert [1, 2] == written(folder)


async def test_a_restore_that_fails_in_the_middle_leaves_no_file(place, escrow, tmp_path):
    boot, blobs, folder = place
    checkpointer = Checkpointer(await boot(), folder, escrow.clock, nobody)
    write(folder, 1)
    assert await checkpointer.last()
    unlocked = await boot()
    for name in [name for name in blobs.kept if name.startswith("p-")]:
        blobs.kept[name] = bytes(len(blobs.kept[name]))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(Halted, match="not what was put there"):
        await put_back(unlocked, Folders(elsewhere, None), Progress())
    assert not (elsewhere / BOOKS).exists()


async def test_a_surprise_is_told_to_who_waits_and_takes_nobody_down(
    place, escrow, nursery, monkeypatch
):
    monkeypatch.setattr(checkpoints, "RETRY_S", 0.05)
    boot, _, folder = place
    checkpointer = Checkpointer(await boot(), folder, escrow.clock, nobody)
    nursery.start_soon(checkpointer.run)
    (folder / OTHERS[0]).rename(folder / "away")
    assert not await checkpointer.reached(), "the first one is a full one, and a file is missing"
    (folder / "away").rename(folder / OTHERS[0])
    with trio.fail_after(20):
        while not await checkpointer.reached():
            pass
