"""Boot, kill, boot again: the identity survives, is never forked, and is never made anew by mistake."""

import os
import shutil
from dataclasses import replace

import pytest
import trio

from bot.boot.heads import NAME, build_head_event, heads_of, newest_head
from bot.boot.secret import Secret, encode_secret
from bot.boot.unlock import Halted, Unlocker
from bot.checkpoint.blobs import BlobsFailed, manifest_name
from bot.checkpoint.folder import FolderBlobs
from bot.checkpoint.saver import Saver
from bot.checkpoint.seal import Sealer
from keycrux_client.protocol import Got
from keycrux_client.shares import DiskKey, Head, make_split, threshold_for
from nips import kinds
from nips.event import sign_event
from nips.keys import SecretKey

KEY = DiskKey(b"k" * 32)


class NearBlobs(FolderBlobs):
    """Without threads, during which a jumping clock would jump."""

    async def _do(self, work):
        await trio.lowlevel.checkpoint()
        try:
            return self._work(work)
        except OSError as error:
            raise BlobsFailed(str(error)) from error


class Killed(BaseException):
    """kill -9."""


def unlocker(escrow, code, path, *, forget=False, patience=60, services=1):
    return Unlocker(code.client, escrow.find_services, NearBlobs(path), services, patience, forget)


async def boot(escrow, code, path, **options):
    return (await unlocker(escrow, code, path, **options).unlock()).identity


@pytest.fixture
def path(tmp_path):
    return tmp_path / "backup"


def newest(path):
    """The blob of the manifest that was written last."""
    return max(path.glob("m-*"), key=lambda p: p.stat().st_mtime_ns)


@pytest.mark.parametrize("services", [1, 3])
async def test_a_fresh_start_then_restarts(escrow, path, services):
    for _ in range(services):
        escrow.add_service()
    code = escrow.code()
    identity = await boot(escrow, code, path)
    for _ in range(3):
        assert identity == await boot(escrow, code, path)


@pytest.mark.parametrize(
    ("epoch", "number", "halts"), [(1, 9, True), (2, 1, True), (1, 1, False), (0, 99, False)]
)
async def test_a_newer_head_that_relays_know_of_halts_and_an_older_one_says_nothing(
    escrow, path, epoch, number, halts
):
    """The parent can hide services from us, and relays; it cannot forge what we once told them."""
    escrow.add_service()
    code, asked = escrow.code(), []
    identity = await boot(escrow, code, path)

    async def find_head(pubkey):
        asked.append(pubkey)
        return Head(epoch, number, "00" * 32)

    again = replace(unlocker(escrow, code, path), find_head=find_head)
    if halts:
        with pytest.raises(Halted, match=f"relays know of our number {number} of epoch {epoch}"):
            await again.unlock()
    else:
        assert identity == (await again.unlock()).identity
    assert [identity.pubkey] == asked


def test_heads_are_told_by_their_key_alone_and_the_newest_counts():
    key, stranger = SecretKey.generate(), SecretKey.generate()
    old, new = Head(3, 40, "aa" * 32), Head(4, 2, "bb" * 32)
    events = [
        build_head_event(key, new, 100),
        build_head_event(key, old, 200),  # overtaken, and still telling
        build_head_event(stranger, Head(9, 9, "cc" * 32), 300),
        sign_event(key, kinds.APP_DATA, "no head", [("d", NAME)], 400),
        sign_event(key, kinds.APP_DATA, '{"epoch": "x"}', [("d", NAME)], 400),
    ]
    assert new == newest_head(events, key.pubkey)
    assert None is newest_head(events[2:], key.pubkey)
    assert [True] * 2 + [False] + [True] * 2 == [heads_of(key.pubkey).matches(e) for e in events]


async def test_an_upgrade_needs_every_maintainer(escrow, path, autojump_clock):
    escrow.add_service()
    maintainers = [SecretKey.generate(), SecretKey.generate()]
    identity = await boot(escrow, escrow.code(maintainers=maintainers), path)
    for signed_by in ([], maintainers[:1]):
        with pytest.raises(Halted, match="hold none for this code"):
            await boot(escrow, escrow.code("new", maintainers, signed_by=signed_by), path)
    assert identity == await boot(escrow, escrow.code("new", maintainers), path)
    assert identity == await boot(escrow, escrow.code("new", maintainers), path)


async def test_dead_services_halt_it_and_it_goes_on_when_they_are_back(
    escrow, path, autojump_clock, nursery
):
    escrow.add_service()
    code = escrow.code()
    identity = await boot(escrow, code, path)
    dead, escrow.lane.services = escrow.lane.services, {}
    with pytest.raises(Halted, match="no escrow service"):
        await boot(escrow, code, path)

    async def revive():
        await trio.sleep(20)
        escrow.lane.services = dead

    nursery.start_soon(revive)
    assert identity == await boot(escrow, code, path)


async def test_the_parent_hands_over_an_old_backup(escrow, path, autojump_clock):
    escrow.add_service()
    code = escrow.code()
    await boot(escrow, code, path)
    shutil.copytree(path, path.with_suffix(".old"))
    await boot(escrow, code, path)
    shutil.rmtree(path)
    path.with_suffix(".old").rename(path)
    with pytest.raises(Halted, match="knows of number 2, which is not handed to us: an old state"):
        await boot(escrow, code, path)


async def test_the_parent_hides_the_backup(escrow, path, autojump_clock):
    escrow.add_service()
    code = escrow.code()
    identity = await boot(escrow, code, path)
    hidden = path.rename(path.with_suffix(".hidden"))
    with pytest.raises(Halted, match="--forget-state"):
        await boot(escrow, code, path)
    hidden.rename(path)
    assert identity == await boot(escrow, code, path)
    shutil.rmtree(path)
    other = await boot(escrow, code, path, forget=True)
    assert other != identity
    assert other == await boot(escrow, code, path)


@pytest.mark.parametrize(
    "how", ["changed", "another key's", "empty", "a folder", "a pipe", "a giant"]
)
async def test_the_parent_hands_over_something_else(escrow, path, autojump_clock, how, tmp_path):
    escrow.add_service()
    code = escrow.code()
    await boot(escrow, code, path)
    blob = newest(path)
    raw = blob.read_bytes()
    blob.unlink()
    match how:
        case "changed":
            blob.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        case "another key's":
            elsewhere = FolderBlobs(tmp_path / "elsewhere")
            secret = encode_secret(Secret(SecretKey.generate(), make_split(KEY, 1)))
            saved = await Saver(Sealer(KEY), elsewhere, 99, None).save([], [], secret, 0)
            name = manifest_name(saved.state.head.digest)
            shutil.copy(tmp_path / "elsewhere" / name, blob)
        case "empty":
            blob.write_bytes(b"")
        case "a pipe":
            os.mkfifo(blob)
        case "a giant":
            blob.write_bytes(bytes(40 << 20))
        case _:
            blob.mkdir()
    with pytest.raises(Halted):
        await boot(escrow, code, path)
    with pytest.raises(Halted):
        await boot(escrow, code, path, forget=True)


async def test_no_service_at_all_makes_nothing(escrow, path, autojump_clock):
    with pytest.raises(Halted, match="no escrow service"):
        await boot(escrow, escrow.code(), path)
    assert [] == list(path.glob("*"))


async def test_one_silent_service_may_hold_our_key_so_nothing_is_made(
    escrow, path, autojump_clock
):
    escrow.add_service()
    silent = escrow.add_service()
    escrow.lane.services.pop(silent)
    with pytest.raises(Halted, match="may hold our key"):
        await boot(escrow, escrow.code(), path)


async def test_a_hidden_service_or_relay_may_hold_our_key_so_nothing_is_made(
    escrow, path, autojump_clock
):
    """The parent shows us fewer services than the image asks for, or a relay that says nothing."""
    escrow.add_service()
    with pytest.raises(Halted, match="1 escrow services or their relays"):
        await boot(escrow, escrow.code(), path, services=2)
    escrow.lane.silent = ("wss://dead",)
    with pytest.raises(Halted, match="1 escrow services or their relays"):
        await boot(escrow, escrow.code(), path)
    escrow.lane.silent = ()
    assert await boot(escrow, escrow.code(), path)


async def test_given_up_state_does_not_come_back_to_haunt_us(escrow, path, autojump_clock):
    names = [escrow.add_service() for _ in range(2)]
    code = escrow.code()
    for _ in range(3):
        await boot(escrow, code, path)
    shutil.rmtree(path)
    away = escrow.lane.services.pop(names[0])
    other = await boot(escrow, code, path, forget=True)
    escrow.lane.services[names[0]] = away
    assert other == await boot(escrow, code, path)


async def test_nobody_is_served_while_no_service_takes_the_key(escrow, path, autojump_clock):
    escrow.add_service()
    # A policy that its own credentials do not fulfil: services refuse to store under it.
    with pytest.raises(Halted, match="0 of the 1 escrow services needed"):
        await boot(escrow, escrow.code(signed_by=[]), path)
    assert not (path / "backup").exists(), "nobody is told that there is one"


async def test_a_service_that_was_hidden_until_we_had_made_a_key_stops_us(
    escrow, path, tmp_path, autojump_clock
):
    code = escrow.code()
    escrow.add_service()
    (holder,) = escrow.lane.announcements
    identity = await boot(escrow, code, path)
    escrow.add_service()
    asked = 0

    async def find_services():
        nonlocal asked
        asked += 1
        shown = [e for e in announced if asked > 1 or e is not holder]
        escrow.lane.announcements = shown
        return await escrow.find_services()

    announced = escrow.lane.announcements
    elsewhere = Unlocker(code.client, find_services, NearBlobs(tmp_path / "other"), 1, 60, False)
    with pytest.raises(Halted, match="a service holds another state of ours"):
        await elsewhere.unlock()
    assert identity == await boot(escrow, code, path)


async def crash_at(escrow, code, path, count, monkeypatch):
    """Boot, and die at the count-th step. Whether it died."""
    steps, died = 0, False

    def step():
        nonlocal steps
        steps += 1
        if steps == count:
            raise Killed

    put, set_one = FolderBlobs.put, type(code.client).set

    async def putting(*args):
        step()
        await put(*args)
        step()

    async def setting(*args, **options):
        step()
        done = await set_one(*args, **options)
        step()
        return done

    with monkeypatch.context() as patch:
        patch.setattr(FolderBlobs, "put", putting)
        patch.setattr(type(code.client), "set", setting)
        try:
            await boot(escrow, code, path)
        except* Killed:
            died = True
    return died


@pytest.mark.parametrize("services", [1, 2, 3, 4, 5])
async def test_killed_at_every_step_of_a_restart(
    escrow, path, services, monkeypatch, autojump_clock, record_property
):
    for _ in range(services):
        escrow.add_service()
    code = escrow.code()
    identity = await boot(escrow, code, path)
    tried = 0
    while await crash_at(escrow, code, path, tried + 1, monkeypatch):
        tried += 1
        assert identity == await boot(escrow, code, path), f"after step {tried}"
    assert tried >= 4
    record_property(
        "figure", f"crash points of a restart with {services} escrow services: {tried} of {tried}"
    )


@pytest.mark.parametrize("services", [1, 3])
async def test_killed_at_every_step_of_the_first_start(
    escrow, path, services, monkeypatch, autojump_clock, record_property
):
    """Nobody was served, so nothing is lost; but nothing may be overwritten either without an order."""
    for _ in range(services):
        escrow.add_service()
    code = escrow.code()
    tried = 0
    while await crash_at(escrow, code, path, tried + 1, monkeypatch):
        tried += 1
        held = [reply.got for reply in await code.get_all()]
        try:
            assert await boot(escrow, code, path)
        except Halted as halted:
            # Too few shares to open anything: only the operator may give them up.
            assert 1 <= held.count(Got.HELD) < threshold_for(services), tried
            assert "--forget-state" in str(halted)
            assert await boot(escrow, code, path, forget=True)
        shutil.rmtree(path)
        for book in escrow.books:
            book._db.execute("DELETE FROM held")
    assert tried >= 4
    record_property(
        "figure",
        f"crash points of a first start with {services} escrow services: {tried} of {tried}",
    )


async def test_a_keeper_that_does_not_answer_halts_it_and_nothing_is_made(
    escrow, path, autojump_clock, monkeypatch
):
    escrow.add_service()
    code = escrow.code()
    await boot(escrow, code, path)

    async def fails(*_):
        raise BlobsFailed("the parent does not answer")

    for method in ("get", "names", "put"):
        with monkeypatch.context() as patch:
            patch.setattr(FolderBlobs, method, fails)
            with pytest.raises(Halted):
                await boot(escrow, code, path)
            with pytest.raises(Halted):
                await boot(escrow, code, path, forget=True)


async def test_of_two_from_one_backup_the_older_one_finds_that_it_was_overtaken(escrow, path):
    for _ in range(3):
        escrow.add_service()
    code = escrow.code()
    await boot(escrow, code, path)
    older = await unlocker(escrow, code, path).unlock()
    newer = await unlocker(escrow, code, path).unlock()
    assert older.identity == newer.identity
    for unlocked, overtaken in ((newer, False), (older, True), (newer, False)):
        saved = await unlocked.saver.save([], [], encode_secret(unlocked.secret), 0)
        done = await unlocked.keeper.anchor(saved.state.head, unlocked.secret.holders)
        assert (not overtaken, overtaken) == (done.is_safe, bool(done.ahead))
