"""Checkpoints while the server runs: who waits for one, who is told that there is none, and who must stop."""

import errno
import os
import sqlite3
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field, replace

import pytest
import trio

from bot.adapters.disks.disks import LAYER
from bot.adapters.engine.cgroup import DoesNotStandStill
from bot.adapters.store.sqlite import SqliteStore
from bot.boot.line import Line, NoLine
from bot.boot.put_back import BOOKS, Folders, put_back
from bot.boot.secret import encode_secret
from bot.boot.unlock import Halted, Overtaken, Unlocker
from bot.checkpoint.blobs import BlobsFailed, is_manifest_name
from bot.checkpoint.packer import Snapshot
from bot.checkpoint.restore import Progress
from bot.checkpoint.saver import KEPT
from bot.server import checkpoints
from bot.server.checkpoints import Checkpointer
from bot.server.content import OTHERS
from nips.keys import SecretKey
from tests.adapters.test_migrations import PUBKEY, SCRIPTS, make
from tests.checkpoint.keeper import MemoryBlobs


@pytest.fixture
async def place(escrow, tmp_path):
    """Booted once, with files to copy: (boot again, blobs, folder, what was told)."""
    for _ in range(3):
        escrow.add_service()
    code, blobs = escrow.code(), MemoryBlobs()

    async def boot(on=None, keeper=blobs, halt_after_s=60):
        """``on``: a folder whose files go on."""
        unlocker = Unlocker(code.client, escrow.find_services, keeper, 3, halt_after_s, False)
        line = Line(on / BOOKS) if on else NoLine()
        return await replace(unlocker, line=line).unlock()

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


# -- two of one state, and a host that chooses when each of them goes on --------------------------------


@dataclass
class HeldUp:
    """The keeper, who lets one question wait until it suits him."""

    blobs: MemoryBlobs
    method: str
    came: trio.Event = field(default_factory=trio.Event)
    goes_on: trio.Event = field(default_factory=trio.Event)

    def __getattr__(self, name):
        real = getattr(self.blobs, name)
        if name != self.method:
            return real

        async def wait(*args):
            self.came.set()
            await self.goes_on.wait()
            return await real(*args)

        return wait


@asynccontextmanager
async def held_up(boot, blobs, method):
    """A newer one boots, as far as that question; it goes on at the end of the block, and is then the one in the list."""
    gate, newer = HeldUp(blobs, method), []

    async def start():
        newer.append(await boot(keeper=gate))

    async with trio.open_nursery() as booting:
        booting.start_soon(start)
        await gate.came.wait()
        yield newer
        gate.goes_on.set()


def rewrite(folder):
    """From top to bottom: packs of the last checkpoint are not needed any more."""
    with closing(sqlite3.connect(folder / BOOKS)) as db:
        db.execute("DROP TABLE IF EXISTS fill")
        db.execute("CREATE TABLE fill (b)")
        db.execute("INSERT INTO fill VALUES (?)", (os.urandom(200_000),))
        db.commit()


@pytest.mark.parametrize("full", [False, True], ids=["the books", "all, and packs are deleted"])
@pytest.mark.parametrize("away", [None, 0, 2])
async def test_what_was_told_as_safe_while_a_newer_one_looked_is_not_rolled_back(
    place, escrow, tmp_path, full, away
):
    """``away``: a service that is silent meanwhile; it comes back with what the newer one has seen."""
    boot, blobs, folder = place
    older = Checkpointer(await boot(), folder, escrow.clock, nobody)
    write(folder, 0)
    assert await older._try(full=True)
    async with held_up(boot, blobs, "names") as newer:
        names = [*escrow.lane.services]
        gone = {names[away]: escrow.lane.services.pop(names[away])} if away is not None else {}
        for number in range(1, 9):
            rewrite(folder)
            write(folder, number)
            assert await older._try(full=full)
        escrow.lane.services |= gone
    with pytest.raises(Overtaken):
        await older._try(full=False)
    for name, unlocked in (("newer", newer[0]), ("third", await boot())):
        await put_back(unlocked, Folders(tmp_path / name, None), Progress())
        assert [*range(9)] == written(tmp_path / name)


@pytest.mark.parametrize("away", [None, 0, 2])
async def test_one_whose_turn_is_over_says_nothing_is_safe_before_the_newer_one_has_written(
    place, escrow, tmp_path, away
):
    """Else both could go on for a while, and one of the two would be rolled back."""
    boot, blobs, folder = place
    older = Checkpointer(await boot(), folder, escrow.clock, nobody)
    write(folder, 0)
    assert await older._try(full=True)
    names = [*escrow.lane.services]
    async with held_up(boot, blobs, "put") as newer:
        if away is not None:
            escrow.lane.services.pop(names[away])
        write(folder, 1)
        with pytest.raises(Halted, match="looks whether it is still the newest") as caught:
            await older._try(full=True)
    assert not isinstance(caught.value, Overtaken), "nobody knows yet which of the two goes on"
    await put_back(newer[0], Folders(tmp_path / "newer", None), Progress())
    assert [0] == written(tmp_path / "newer")


async def test_one_that_took_its_turn_and_died_leaves_everything_to_the_next(
    place, escrow, tmp_path
):
    boot, blobs, folder = place
    older = Checkpointer(await boot(), folder, escrow.clock, nobody)
    write(folder, 0)
    assert await older._try(full=True)
    for method in ("get", "put", "put", "names"):
        gate = HeldUp(blobs, method)
        async with trio.open_nursery() as booting:
            booting.start_soon(boot, None, gate)
            await gate.came.wait()
            booting.cancel_scope.cancel()
    await put_back(await boot(), Folders(tmp_path / "next", None), Progress())
    assert [0] == written(tmp_path / "next")


async def test_services_that_answer_and_store_nothing_cost_nothing(place, escrow, tmp_path):
    """However often one tries: no checkpoint is put before its turn has come."""
    boot, blobs, folder = place
    checkpointer = Checkpointer(await boot(), folder, escrow.clock, nobody)
    write(folder, 0)
    assert await checkpointer.last()
    before = dict(blobs.kept)
    for book in escrow.books:
        book.real, book.set = book.set, lambda *_: "no"
    for _ in range(5):
        with pytest.raises(Halted, match="let us go on") as caught:
            await boot(tmp_path / "home", halt_after_s=0.2)
        assert not isinstance(caught.value, Overtaken)
    assert before == blobs.kept
    for book in escrow.books:
        book.set = book.real
    await put_back(await boot(), Folders(tmp_path / "home", None), Progress())
    assert [0] == written(tmp_path / "home")


async def test_of_many_that_boot_at_once_one_is_the_newest_and_the_others_learn_it(place, escrow):
    boot, _, folder = place
    await boot()
    running = []

    async def start():
        running.append(Checkpointer(await boot(), folder, escrow.clock, nobody))

    async with trio.open_nursery() as booting:
        for _ in range(4):
            booting.start_soon(start)
    went_on = []
    for one in running:
        with suppress(Overtaken):
            went_on.append(await one.last())
    assert [True] == went_on


@pytest.fixture
async def settled(place, escrow, tmp_path):
    """Restored to a folder of its own, in which it writes from then on: (boot, blobs, folder, its unlocked)."""
    boot, blobs, folder = place
    assert await Checkpointer(await boot(), folder, escrow.clock, nobody).last()
    home = tmp_path / "home"
    home.mkdir()
    unlocked = await boot(home)
    await put_back(unlocked, Folders(home, None), Progress())
    return boot, blobs, home, unlocked


async def test_one_that_was_overtaken_does_not_come_back_with_its_old_files(
    settled, escrow, tmp_path
):
    """Its supervisor starts it again: the newer one must not even notice."""
    boot, _, home, unlocked = settled
    older = Checkpointer(unlocked, home, escrow.clock, nobody)
    assert await older.last()
    newer = Checkpointer(await boot(), home, escrow.clock, nobody)
    write(home, 1)
    for _ in range(2):
        with pytest.raises(Overtaken, match="belong to a life that was overtaken"):
            await boot(home)
    assert await newer.last()


@pytest.mark.parametrize("comes", ["no further", "so far that it writes"])
async def test_one_that_lost_its_turn_goes_on_with_its_files_unless_the_other_one_does(
    settled, escrow, tmp_path, comes
):
    """A host starts one more enclave and stops it again: that must not end the one that runs for good."""
    boot, blobs, home, unlocked = settled
    older = Checkpointer(unlocked, home, escrow.clock, nobody)
    write(home, 1)
    assert await older.last()
    write(home, 2)
    gate = HeldUp(blobs, "put")
    async with trio.open_nursery() as booting:
        booting.start_soon(boot, None, gate)
        await gate.came.wait()
        with pytest.raises(Halted) as caught:
            await older._look()
        assert type(caught.value) is Halted
        if comes == "no further":
            booting.cancel_scope.cancel()
        gate.goes_on.set()
    if comes == "no further":
        again = Checkpointer(await boot(home), home, escrow.clock, nobody)
        assert await again.last()
        assert [1, 2] == written(home)
    else:
        with pytest.raises(Overtaken, match="belong to a life that was overtaken"):
            await boot(home)


class Died(BaseException):
    """kill -9."""


@pytest.mark.parametrize("when", ["before escrow", "after escrow", "after all"])
async def test_one_that_dies_around_an_anchor_goes_on_with_its_files(
    settled, escrow, monkeypatch, when
):
    boot, _, home, unlocked = settled
    write(home, 1)
    real = unlocked.keeper.anchor

    async def die(*args):
        if when == "after escrow":
            await real(*args)
        raise Died

    if when != "after all":
        monkeypatch.setattr(unlocked.keeper, "anchor", die)
    with suppress(Died):
        await Checkpointer(unlocked, home, escrow.clock, nobody).last()
    write(home, 2)
    await put_back(await boot(home), Folders(home, None), Progress())
    assert [1, 2] == written(home)


@pytest.mark.parametrize("when", ["before it is noted", "before its files are back"])
async def test_one_that_dies_in_its_boot_begins_again_unless_another_one_went_on(
    place, escrow, tmp_path, monkeypatch, when
):
    boot, _, folder = place
    write(folder, 0)
    assert await Checkpointer(await boot(), folder, escrow.clock, nobody).last()
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    other.mkdir()

    def die(*_):
        raise Died

    with monkeypatch.context() as patch, suppress(Died):
        if when == "before it is noted":
            patch.setattr(Line, "begin", die)
        await boot(home)
    await boot(home)
    newer = await boot(other)
    await put_back(newer, Folders(other, None), Progress())
    newer = Checkpointer(newer, other, escrow.clock, nobody)
    with pytest.raises(Overtaken, match="belong to a life that was overtaken"):
        await boot(home)
    assert await newer.last(), "and does not even notice"


@pytest.mark.parametrize("how", ["gone", "cut", "too long", "a folder"])
async def test_files_of_which_nothing_tells_whose_they_are_halt_it_and_prove_nothing(
    settled, escrow, tmp_path, how
):
    boot, _, home, unlocked = settled
    kept = (home / "line").read_bytes()
    assert unlocked.secret.line == kept.decode()
    (home / "line").unlink()
    match how:
        case "cut":
            (home / "line").write_bytes(kept[:-1])
        case "too long":
            (home / "line").write_bytes(kept + b"x")
        case "a folder":
            (home / "line").mkdir()
    with pytest.raises(Halted, match="nothing says to which life") as caught:
        await boot(home)
    assert not isinstance(caught.value, Overtaken)
    assert await Checkpointer(unlocked, home, escrow.clock, nobody).last(), "nobody was disturbed"


async def test_a_first_start_does_not_take_files_of_nobody_knows_whom(place, escrow):
    boot, _, folder = place
    with pytest.raises(Halted, match="no backup of the files that are here already"):
        await boot(folder)


@pytest.mark.parametrize("how", ["raises", "hangs"])
async def test_a_parent_that_will_not_be_told_holds_nobody_up(place, escrow, monkeypatch, how):
    monkeypatch.setattr(checkpoints, "TELL_S", 0.05)
    boot, _, folder = place

    async def tell(_):
        if how == "raises":
            raise OSError("no parent")
        await trio.sleep_forever()

    older = Checkpointer(await boot(), folder, escrow.clock, tell)
    await boot()
    with trio.fail_after(5), pytest.raises(Overtaken):
        await older._try(full=False)


@pytest.mark.parametrize("how", ["refuses", "hangs"])
async def test_what_is_anchored_is_told_so_whatever_becomes_of_old_blobs(
    place, escrow, monkeypatch, how
):
    monkeypatch.setattr(checkpoints, "SETTLE_S", 0.05)
    boot, blobs, folder = place
    checkpointer = Checkpointer(await boot(), folder, escrow.clock, nobody)

    async def delete(_):
        if how == "refuses":
            raise BlobsFailed("no")
        await trio.sleep_forever()

    monkeypatch.setattr(blobs, "delete", delete)
    for number in range(5):
        write(folder, number)
        with trio.fail_after(5):
            assert await checkpointer.last()


async def test_while_escrow_takes_nothing_a_few_are_kept_and_then_it_catches_up(
    place, escrow, tmp_path
):
    boot, blobs, folder = place
    checkpointer = Checkpointer(await boot(), folder, escrow.clock, nobody)
    away, escrow.lane.services = escrow.lane.services, {}
    for number in range(60):
        write(folder, number)
        assert not await checkpointer._try(full=number % 3 == 0)
    kept = sum(map(is_manifest_name, blobs.kept))
    assert 2 < kept <= checkpoints.MOST_UNANCHORED + 3
    escrow.lane.services = away
    assert await checkpointer._try(full=True)
    assert sum(map(is_manifest_name, blobs.kept)) <= KEPT
    await put_back(await boot(), Folders(tmp_path / "elsewhere", None), Progress())
    assert list(range(60)) == written(tmp_path / "elsewhere")


def only(escrow, everybody, *numbers):
    """Whom everybody reaches from now on."""
    names = [*everybody]
    escrow.lane.services = {names[number]: everybody[names[number]] for number in numbers}


async def test_whom_a_checkpoint_names_does_not_decide_alone_before_it_was_anchored(
    place, escrow, monkeypatch
):
    """From three services to five, and the last step reaches three of them only: the two others could still decide."""
    boot, _, folder = place
    older = Checkpointer(await boot(), folder, escrow.clock, nobody)
    assert await older.last()
    for _ in range(2):
        escrow.add_service()
    everybody = dict(escrow.lane.services)
    keeper = older._unlocked.keeper
    await keeper.refresh()
    real = keeper.adopt

    async def adopt(*args):
        only(escrow, everybody, 2, 3, 4)
        return await real(*args)

    monkeypatch.setattr(keeper, "adopt", adopt)
    assert not await older._try(full=True)
    assert 5 == len(older._unlocked.secret.split.parts)
    with pytest.raises(Halted, match="only 1 of 2 escrow services needed let us go on"):
        await boot(halt_after_s=0.3)
    only(escrow, everybody, 0, 1, 2)
    next_one = Checkpointer(await boot(), folder, escrow.clock, nobody)
    escrow.lane.services = everybody
    for _ in range(3):
        is_safe = await next_one._try(full=True)
    assert is_safe
    assert 1 == len(next_one._unlocked.keeper.deciders)


@pytest.mark.parametrize("again", ["the former", "the next"])
async def test_an_upgrade_overtakes_the_former_image_and_the_other_way_round(
    escrow, tmp_path, again
):
    """Services keep what each image stored; the two must not go on side by side."""
    for _ in range(3):
        escrow.add_service()
    maintainers, blobs = [SecretKey.generate()], MemoryBlobs()
    codes = {name: escrow.code(name, maintainers) for name in ("the former", "the next")}
    for name in (BOOKS, *OTHERS):
        with closing(sqlite3.connect(tmp_path / name)) as db, db:
            db.execute("CREATE TABLE t (n)")

    async def boot(name):
        return await Unlocker(codes[name].client, escrow.find_services, blobs, 3, 60).unlock()

    former = Checkpointer(await boot("the former"), tmp_path, escrow.clock, nobody)
    assert await former.last()
    upgraded = Checkpointer(await boot("the next"), tmp_path, escrow.clock, nobody)
    write(tmp_path, 1)
    assert await upgraded.last()
    with pytest.raises(Overtaken):
        await former._try(full=False)
    await put_back(await boot(again), Folders(tmp_path / "home", None), Progress())
    assert [1] == written(tmp_path / "home"), "whichever image goes on, nothing is rolled back"
    with pytest.raises(Overtaken):
        await upgraded._try(full=False)


async def test_a_boot_that_tried_in_vain_is_not_overtaken_by_itself(place, escrow):
    """A service that took its turn once was away when a later try succeeded."""
    boot, _, folder = place
    assert await Checkpointer(await boot(), folder, escrow.clock, nobody).last()
    everybody, tries = dict(escrow.lane.services), []
    for number, book in enumerate(escrow.books):
        book.real = book.set

        def set_(*args, number=number, book=book):
            tries.append(number)
            if number == 0 and len(tries) > 4:
                only(escrow, everybody, 1, 2)
            return book.real(*args) if number == 0 or len(tries) > 12 else "no"

        book.set = set_
    one = Checkpointer(await boot(), folder, escrow.clock, nobody)
    assert await one._try(full=True)
    escrow.lane.services = everybody
    for _ in range(2):
        assert await one._try(full=True)


# -- another key, another split ---------------------------------------------------------------------------


async def test_by_order_all_is_sealed_anew_and_the_former_key_opens_nothing_that_comes(
    settled, escrow, tmp_path
):
    boot, blobs, home, unlocked = settled
    former, before = unlocked.sealer, set(blobs.kept)
    checkpointer = Checkpointer(unlocked, home, escrow.clock, nobody)
    disks = FakeDisks()
    checkpointer.content.with_disks(disks, None)
    assert await checkpointer.last()
    write(home, 1)
    checkpointer.rotate()
    assert await checkpointer.last()
    assert checkpointer._unlocked.sealer.key != former.key
    assert not before & set(blobs.kept) - {"backup"}, "what the former one opens is gone"
    for number in (2, 3):
        write(home, number)
        assert await checkpointer._try(full=number == 2)
    assert checkpointer._unlocked.sealer.key != former.key, "once, and not again"
    later = await boot()
    assert unlocked.identity == later.identity
    assert checkpointer._unlocked.sealer.key == later.sealer.key
    await put_back(later, Folders(tmp_path / "later", tmp_path / "disks"), Progress())
    assert [1, 2, 3] == written(tmp_path / "later")
    assert {f"wallet{LAYER}", f"tenant{LAYER}"} == {p.name for p in (tmp_path / "disks").iterdir()}
    with pytest.raises(Overtaken):
        await checkpointer.last()


@pytest.mark.parametrize("orders", [False, True], ids=["another split", "another key"])
async def test_one_that_dies_anywhere_in_a_renewal_comes_back_as_it_was_or_as_it_would_be(
    place, escrow, tmp_path, monkeypatch, orders
):
    """At every write to escrow and to the keeper, before and after; and whoever was told that it is safe finds it."""
    boot, blobs, folder = place
    checkpointer = Checkpointer(await boot(), folder, escrow.clock, nobody)
    assert await checkpointer.last()
    while not orders and len(escrow.books) < 5:
        escrow.add_service()
    for point in range(60):
        checkpointer = Checkpointer(await boot(), folder, escrow.clock, nobody)
        write(folder, point)
        assert await checkpointer._try(full=False)
        if orders:
            checkpointer.rotate()
        ended = await dies_at(point, checkpointer, blobs, monkeypatch)
        back = await boot()
        await put_back(back, Folders(tmp_path / str(point), None), Progress())
        assert [*range(point + 1)] == written(tmp_path / str(point))
        if ended:
            break
    assert 7 < point < 59, "each write of prepare, put and adopt"
    assert (5 if not orders else 3) == len(back.secret.split.parts)
    assert len(blobs.kept) < 60, "what dead ones left was deleted by who came after"


async def dies_at(point, checkpointer, blobs, monkeypatch):
    """In the middle of the write with that number. Whether it came to its end."""
    client, left = type(checkpointer._unlocked.keeper._client), [point]

    def dying(real):
        async def do(*args, **options):
            left[0] -= 1
            if left[0] == -1 and point % 2:
                await real(*args, **options)
            if left[0] < 0:
                raise Died
            return await real(*args, **options)

        return do

    with monkeypatch.context() as patch:
        patch.setattr(blobs, "put", dying(blobs.put))
        patch.setattr(client, "set", dying(client.set))
        try:
            return await checkpointer.last()
        except BaseException as error:
            if not isinstance(error, Died) and not error.split(Died)[0]:
                raise
            return False


# -- a wallet of our own ---------------------------------------------------------------------------------


@dataclass
class FakeDisks:
    """Disks of two containers, one of which holds our money, as `EngineDisks`."""

    content: dict = field(default_factory=lambda: {"wallet": b"w", "tenant": b"t"})
    stuck: bool = False

    async def copies(self, copying, is_kept):
        return self._copies(copying)

    def _copies(self, copying):
        for name, raw in self.content.items():
            if copying.only is not None and name not in copying.only:
                continue
            if name in copying.must and self.stuck:
                raise DoesNotStandStill("it runs")
            yield Snapshot(f"{name}{LAYER}", 70_000, ((0, raw.ljust(65_536, b"x")),))

    def kept(self, copying):
        pass


async def test_what_holds_our_money_goes_with_the_books_or_the_books_do_not_go(
    place, escrow, tmp_path
):
    boot, _, folder = place
    disks = FakeDisks()

    async def money():
        return frozenset({"wallet"})

    checkpointer = Checkpointer(await boot(), folder, escrow.clock, nobody)
    checkpointer.content.with_disks(disks, money)
    assert await checkpointer._try(full=True)
    write(folder, 1)
    disks.content = {"wallet": b"paid", "tenant": b"worked"}
    assert await checkpointer._try(full=False)
    write(folder, 2)
    disks.stuck = True
    for full in (False, True):
        assert not await checkpointer._try(full=full)
    await put_back(await boot(), Folders(tmp_path / "home", tmp_path / "disks"), Progress())
    assert [1] == written(tmp_path / "home")
    back = {p.stem: p.read_bytes()[:6].strip(b"x") for p in (tmp_path / "disks").iterdir()}
    assert {"wallet": b"paid", "tenant": b"t"} == back


# -- back to files ---------------------------------------------------------------------------------------


async def test_a_disk_that_was_deleted_since_the_last_checkpoint_stays_deleted(
    settled, escrow, tmp_path
):
    boot, _, home, unlocked = settled
    disks = tmp_path / "disks"
    raw = os.urandom(70_000)
    disk = Snapshot(f"x{LAYER}", 1 << 20, ((0, raw),))
    checkpointer = Checkpointer(unlocked, home, escrow.clock, nobody)
    assert await checkpointer.last()
    names = [entry.name for entry in unlocked.saver.last.manifest.entries]
    saved = await unlocked.saver.save([disk], names, encode_secret(unlocked.secret), 0)
    assert await checkpointer._anchor(saved.state.head)
    await put_back(await boot(home), Folders(home, disks), Progress())
    assert not disks.exists(), "the process died, and whoever deleted it knew why"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    await put_back(await boot(elsewhere), Folders(elsewhere, disks), Progress())
    back = disks / f"x{LAYER}"
    assert (raw, bytes(10)) == (back.read_bytes()[:70_000], back.read_bytes()[70_000:70_010])
    assert back.stat().st_blocks * 512 >= 1 << 20


@pytest.mark.parametrize("version", range(1, len(SCRIPTS) + 1))
async def test_books_of_every_earlier_version_come_back_and_become_todays(
    place, escrow, tmp_path, version
):
    """An upgrade restores what the former version wrote."""
    boot, _, folder = place
    (folder / BOOKS).unlink()
    make(folder / BOOKS, version)
    assert await Checkpointer(await boot(), folder, escrow.clock, nobody).last()
    home = tmp_path / "home"
    await put_back(await boot(), Folders(home, None), Progress())
    with closing(SqliteStore(home / BOOKS)) as store:
        row = await store.read(lambda tx: tx.containers.find(PUBKEY))
        payment = await store.read(lambda tx: tx.outgoing.find("p"))
    assert ("deployed", 20_000, 5) == (
        row.state.value,
        row.ports[0].host_port,
        payment.amount_msat,
    )


async def test_a_disk_that_takes_a_part_is_asked_again_and_a_full_one_halts_it(
    settled, tmp_path, monkeypatch
):
    boot, _, home, _ = settled
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, bytes(data)[:1000], at))
    one = tmp_path / "one"
    await put_back(await boot(), Folders(one, None), Progress())
    assert (home / BOOKS).read_bytes() == (one / BOOKS).read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("pwrite", "posix_fallocate", "ftruncate"):
        two = tmp_path / call
        two.mkdir()
        (two / f"{BOOKS}.new").write_text("of an earlier try")
        before = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(Halted, match="no room for the backup"):
                await put_back(await boot(), Folders(two, None), Progress())
        assert [] == list(two.iterdir())
        assert before == len(os.listdir("/proc/self/fd"))
