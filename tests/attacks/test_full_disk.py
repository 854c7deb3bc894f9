"""A disk that is full: reads and refusals go on, the reason is told, and once there is room everything goes on."""

import errno
import os
import subprocess
from contextlib import contextmanager

import pytest
from structlog.testing import capture_logs

from bot.adapters.seen_store import SeenStore
from bot.adapters.store.sqlite import SqliteStore
from bot.server.doors import rpc
from bot.server.inbox import Admission, Inbox, InboxPolicy
from handlers.tables import StoreUnavailable
from nips import kinds
from nips.keys import SecretKey
from nips.rpc import RpcRequest, build_request, open_reply_untrusted
from tests.conftest import World
from tests.fakes import FakeClock, FakeEngine, FakeRegistry, FakeWallet, make_context


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@contextmanager
def full(disk):
    """Until the block ends, not one byte more fits."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError) as refused:
        while True:
            file.write(b"x" * 4_096)
    assert errno.ENOSPC == refused.value.errno
    yield
    ballast.unlink()


@pytest.fixture
def small_world(disk):
    clock = FakeClock()
    wallet, engine, registry = FakeWallet(clock), FakeEngine(clock), FakeRegistry()
    path = disk / "enclaved.sqlite"
    store = SqliteStore(path)
    ctx = make_context(store, wallet, engine, clock, registry)
    yield World(ctx, clock, wallet, engine, registry, store, SecretKey.generate().pubkey, path)
    store.close()


async def ask(world, key, inbox, method, **params):
    """The whole way in: admitted, answered."""
    now = world.clock.now()
    us = world.ctx.key.pubkey
    event = build_request(key, kinds.RPC, us, RpcRequest("1", method, params), now)
    assert Admission.ACT is await inbox.admit(event, now)
    reply = open_reply_untrusted(key, await rpc.answer(world.ctx, event))
    return reply.error or reply.result


async def test_everybody_is_answered_and_told_why(small_world, disk):
    world, key = small_world, SecretKey.generate()
    seen, refused = (SeenStore(disk / f"{name}.sqlite", world.clock) for name in "ab")
    inbox = Inbox(world.ctx.key.pubkey, seen, refused, InboxPolicy())
    deployed = await ask(world, key, inbox, "deploy", docker="example.com/app:1", units=1)
    with full(disk), capture_logs() as logged:
        assert "pong" == await ask(world, key, inbox, "ping")
        (listed,) = (await ask(world, key, inbox, "list"))["containers"]
        assert deployed["pubkey"] == listed["pubkey"]
        assert "not-found: there is no such container here" == await ask(
            world, key, inbox, "balance", pubkey=SecretKey.generate().pubkey
        )
        # More than what still fits into the pages that the files have already.
        answers = {
            str(
                await ask(
                    world,
                    SecretKey.generate(),
                    inbox,
                    "deploy",
                    docker="example.com/app:1",
                    units=1,
                )
            )[:60]
            for _ in range(20)
        }
        assert "unavailable: nothing can be written here now: the disk is full"[:60] in answers
    causes = [line["reason"] for line in logged if line["event"] == "store unavailable"]
    assert causes
    assert all("disk is full" in cause or "disk I/O error" in cause for cause in causes)

    assert "pubkey" in await ask(
        world, SecretKey.generate(), inbox, "deploy", docker="example.com/app:1", units=1
    )
    assert deployed["invoice"]["payment_hash"] in world.wallet.invoices
    seen.close()
    refused.close()


async def test_a_payment_that_could_not_be_written_is_credited_when_there_is_room(
    small_world, disk
):
    world = small_world
    deployed = await world.call("deploy", docker="example.com/app:1", units=1)
    world.wallet.settle(deployed["invoice"]["payment_hash"])
    with full(disk):
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await world.turn()
    for _ in range(3):
        world.clock.advance(5)
        await world.turn()

    assert "deployed" == (await world.row(deployed["pubkey"])).state.value
    await world.audit()
