"""Fixtures: a world of simulators, and, for `dockerd` tests, a real Docker and registry."""

import json
import os
import socket
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings

from bench.soak.books import unsound
from bot.adapters.store.sqlite import SqliteStore
from handlers import BY_NAME
from handlers.context import Caller, Context, Policy
from handlers.errors import Refusal
from handlers.loops import Loop, duties
from handlers.params import parse_params
from nips.keys import SecretKey
from tests.escrow import Lane
from tests.escrow import World as EscrowWorld
from tests.evidence import NOW
from tests.fakes import FakeClock, FakeEngine, FakeRegistry, FakeWallet, make_context
from tests.mounts import mounts_below, unmount_below

REPO = Path(__file__).resolve().parents[1]
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    for item in items:
        if "dockerd" in item.keywords:
            # One engine for all of them: they run on one worker, one after another.
            item.add_marker(pytest.mark.xdist_group("dockerd"))


def pytest_make_parametrize_id(val, argname):
    """Long values make no names: a key made at import differs in each worker, which must all see the same tests."""
    return argname if isinstance(val, str | bytes) and len(val) > 40 else None


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where everything can run: {report.longrepr}"


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_teardown(item):
    """Who mounts something in his folder unmounts it: what stays holds memory, and the folder, for ever."""
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    yield
    if folder and (left := mounts_below(folder)):
        unmount_below(folder)
        pytest.fail(f"mounts that this test left: {left}")


def pytest_terminal_summary(terminalreporter):
    """Figures that tests measured, such as how many crash points were tried."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "figure":
                terminalreporter.write_line(f"{value}")


@dataclass
class World:
    """A server's handlers on simulators, with the loops turned by hand."""

    ctx: Context
    clock: FakeClock
    wallet: FakeWallet
    engine: FakeEngine
    registry: FakeRegistry
    store: SqliteStore
    admin: str
    path: Path
    loops: tuple[Loop, ...] = field(default_factory=lambda: duties(Policy()))

    async def call(
        self, method: str, caller: str | None = None, *, public: bool = False, **params
    ):
        route = BY_NAME[method]
        typed = parse_params(route.params, params)
        if isinstance(typed, Refusal):
            return typed
        return await route.handler(self.ctx, Caller(caller or self.admin, public), typed)

    async def turn(self) -> None:
        """Every loop once."""
        for loop in self.loops:
            await loop.once(self.ctx)

    async def run(self, seconds: float, step_s: float = 1) -> None:
        elapsed = 0.0
        while elapsed < seconds:
            self.clock.advance(step_s)
            elapsed += step_s
            await self.turn()

    async def deployed(self, units: int = 1, **params) -> str:
        """A container that is paid and runs; its pubkey."""
        result = await self.call("deploy", docker="example.com/app:1", units=units, **params)
        assert not isinstance(result, Refusal), result
        self.wallet.settle(result["invoice"]["payment_hash"])
        await self.turn()
        await self.turn()
        return result["pubkey"]

    async def row(self, pubkey: str):
        return await self.store.read(lambda tx: tx.containers.find(pubkey))

    async def balance(self, account: str) -> int:
        return await self.store.read(lambda tx: tx.ledger.balance(account))

    async def audit(self) -> None:
        """What must hold at every moment."""
        with closing(sqlite3.connect(self.path)) as db:
            audit_books(db)
        assert self.wallet.balances == {
            name: -(await self.balance(name)) for name in self.wallet.balances
        }, "the wallet and its mirror in the ledger"


def audit_books(db) -> None:
    """By the tables themselves: `db` is a connection of one's own."""
    assert unsound(db) == []


@pytest.fixture
def world(tmp_path):
    clock = FakeClock()
    wallet, engine, registry = FakeWallet(clock), FakeEngine(clock), FakeRegistry()
    store = SqliteStore(tmp_path / "enclaved.sqlite")
    ctx = make_context(store, wallet, engine, clock, registry)
    path = tmp_path / "enclaved.sqlite"
    yield World(ctx, clock, wallet, engine, registry, store, SecretKey.generate().pubkey, path)
    store.close()


@pytest.fixture
def escrow(tmp_path):
    world = EscrowWorld(FakeClock(NOW), Lane(), tmp_path)
    yield world
    for book in world.books:
        book.close()


@dataclass(frozen=True)
class RealGround:
    """A private dockerd and a registry on this machine, see bot/devstack."""

    socket: str
    cgroup_parent: str
    registry: str
    engine_address: str
    folder: str

    @property
    def dockerd_pid(self):
        """Whoever listens at the socket now: it may have been started anew."""
        with socket.socket(socket.AF_UNIX) as knock:
            knock.connect(self.socket)
            credentials = knock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return struct.unpack("=iII", credentials)[0]


@pytest.fixture(scope="session")
def ground():
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces and a private dockerd")
    process = subprocess.Popen(
        [sys.executable, "-m", "bot.devstack", "ground"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPO,
    )
    line = process.stdout.readline()
    if not line.startswith("{"):
        pytest.fail(f"the private Docker did not start: {line}{process.communicate('')[0]}")
    yield RealGround(**json.loads(line))
    process.stdin.close()
    process.wait(60)
    process.stdout.close()
