"""Boot, kill, boot again: the identity survives, is never forked, and is never made anew by mistake."""

import shutil

import pytest
import trio

import bot.boot.identity
import bot.boot.unlock
from bot.boot.sealed import seal
from bot.boot.unlock import Halted, Unlocker
from keycrux_client.protocol import Got
from keycrux_client.shares import DiskKey, threshold_for
from nips.keys import SecretKey


class Killed(BaseException):
    """kill -9."""


def unlocker(escrow, code, path, *, forget=False, patience=60):
    return Unlocker(
        code.client, escrow.find_services, path, halt_after_s=patience, forget_state=forget
    )


async def boot(escrow, code, path, **options):
    return (await unlocker(escrow, code, path, **options).unlock()).identity


@pytest.fixture
def path(tmp_path):
    return tmp_path / "identity.sealed"


@pytest.mark.parametrize("services", [1, 3])
async def test_a_fresh_start_then_restarts(escrow, path, services):
    for _ in range(services):
        escrow.add_service()
    code = escrow.code()
    identity = await boot(escrow, code, path)
    for _ in range(3):
        assert identity == await boot(escrow, code, path)
    assert ["identity.sealed"] == [p.name for p in path.parent.glob("identity*")]


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
    shutil.copy(path, path.with_suffix(".old"))
    await boot(escrow, code, path)
    shutil.copy(path.with_suffix(".old"), path)
    with pytest.raises(Halted, match="old state"):
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
    path.unlink()
    other = await boot(escrow, code, path, forget=True)
    assert other != identity
    assert other == await boot(escrow, code, path)


@pytest.mark.parametrize("how", ["changed", "another key's", "empty", "a folder"])
async def test_the_parent_hands_over_something_else(escrow, path, autojump_clock, how):
    escrow.add_service()
    code = escrow.code()
    await boot(escrow, code, path)
    raw = path.read_bytes()
    path.unlink()
    match how:
        case "changed":
            path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        case "another key's":
            path.write_bytes(seal(DiskKey.generate(), SecretKey.generate(), 99))
        case "empty":
            path.write_bytes(b"")
        case _:
            path.mkdir()
    with pytest.raises(Halted):
        await boot(escrow, code, path)
    with pytest.raises(Halted):
        await boot(escrow, code, path, forget=True)


async def test_no_service_at_all_makes_nothing(escrow, path, autojump_clock):
    with pytest.raises(Halted, match="no escrow service"):
        await boot(escrow, escrow.code(), path)
    assert not path.exists()


async def test_one_silent_service_may_hold_our_key_so_nothing_is_made(
    escrow, path, autojump_clock
):
    escrow.add_service()
    silent = escrow.add_service()
    escrow.lane.services.pop(silent)
    with pytest.raises(Halted, match="may hold our key"):
        await boot(escrow, escrow.code(), path)


async def test_nobody_is_served_while_no_service_takes_the_key(escrow, path, autojump_clock):
    escrow.add_service()
    # A policy that its own credentials do not fulfil: services refuse to store under it.
    with pytest.raises(Halted, match="no escrow service took our key"):
        await boot(escrow, escrow.code(signed_by=[]), path)
    assert not path.exists()


async def crash_at(escrow, code, path, count, monkeypatch):
    """Boot, and die at the count-th step. Whether it died."""
    steps, died = 0, False

    def step():
        nonlocal steps
        steps += 1
        if steps == count:
            raise Killed

    write, set_one, rename = bot.boot.unlock.write_whole, type(code.client).set, type(path).rename

    def writing(*args):
        step()
        write(*args)
        step()

    async def setting(*args):
        step()
        done = await set_one(*args)
        step()
        return done

    def renaming(self, target):
        step()
        result = rename(self, target)
        step()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(bot.boot.unlock, "write_whole", writing)
        patch.setattr(type(code.client), "set", setting)
        patch.setattr(type(path), "rename", renaming)
        try:
            await boot(escrow, code, path)
        except* Killed:
            died = True
    return died


@pytest.mark.parametrize("services", [1, 3])
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
        path.unlink()
        for book in escrow.books:
            book._db.execute("DELETE FROM held")
    assert tried >= 4
    record_property(
        "figure",
        f"crash points of a first start with {services} escrow services: {tried} of {tried}",
    )
