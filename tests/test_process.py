"""Configuration, logging, keys on disk, the command line, the store's file: what an operator touches."""

import sqlite3
import stat
import subprocess
import sys

import pytest
import structlog
import trio

from bot.adapters.sqlite_store import SqliteStore, migrate
from bot.boot.identity import load_key
from bot.clock import SystemClock
from bot.config import ConfigError, load
from bot.logging import blank_secrets
from bot.relay.pool import RelayPool
from bot.server.outbox import drain
from bot.server.outlet import Outlet
from bot.server.parts import Nudge
from handlers.domain.ledger import Entry
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip19 import nsec
from nips.nip47 import format_uri
from tests.conftest import REPO
from tests.relay.conftest import note, pool, relay

URI = format_uri(SecretKey.generate().pubkey, "ws://127.0.0.1:1", SecretKey.generate())


def configured(tmp_path, text, environment=None):
    path = tmp_path / "enclaved.toml"
    path.write_text(text)
    return load(path, {"ENCLAVED_WALLET_URI": URI} if environment is None else environment)


def test_an_empty_file_gives_the_defaults(tmp_path):
    config = configured(tmp_path, "")

    assert (5_000, 3_600, 100) == (
        config.policy.tariff.price_msat, config.policy.tariff.interval_s, config.policy.capacity.total_units,
    )  # fmt: skip


def test_nested_sections(tmp_path):
    config = configured(
        tmp_path,
        '[policy.tariff]\nprice_msat = 7\n[relays]\nurls = ["wss://a"]\n[server]\nname = "x"',
    )

    assert (7, ("wss://a",), "x") == (
        config.policy.tariff.price_msat,
        config.relays.urls,
        config.server.name,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[serv]", "unknown section [serv]"),
        ("[server]\nnam = 'x'", "[server] unknown name 'nam'"),
        ("[policy]\ngrace_s = '1'", "policy.grace_s must be int"),
        ("[policy]\ngrace_s = true", "policy.grace_s must be int"),
        ("[policy.tariff]\nprice_msat = 0", "[policy.tariff] a tariff"),
        ("[relays]\nurls = 'x'", "relays.urls must be"),
        ("not toml", "is not TOML"),
    ],
)
def test_mistakes_are_reported_with_their_place(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, text)
    assert words in str(caught.value)


def test_a_missing_wallet_says_how_to_give_one(tmp_path):
    with pytest.raises(ConfigError, match="ENCLAVED_WALLET_URI"):
        configured(tmp_path, "", {})
    with pytest.raises(ConfigError, match="uri_file"):
        configured(tmp_path, '[wallet]\nuri_file = "/none"', {})


def test_a_bad_wallet_uri_is_not_repeated(tmp_path):
    secret = SecretKey.generate().reveal_secret().hex()
    with pytest.raises(ConfigError) as caught:
        configured(
            tmp_path, "", {"ENCLAVED_WALLET_URI": f"nostr+walletconnect://x?secret={secret}"}
        )
    assert secret not in str(caught.value)
    assert secret not in repr(configured(tmp_path, ""))


def test_secrets_are_blanked_before_a_line_is_written():
    key = SecretKey.generate()
    line = {
        "a": f"got {nsec(key.reveal_secret())} and secret={key.reveal_secret().hex()}",
        "b": 7,
        "c": "Bearer abcdefghijklmnopqrstu",
    }
    written = str(blank_secrets(None, "", dict(line)))

    assert "nsec1" not in written
    assert key.reveal_secret().hex() not in written
    assert "abcdefghijklmnopqrstu" not in written


async def test_one_line_per_request(world):
    from bot.server.dispatch import Request, dispatch
    from handlers.context import Caller

    with structlog.testing.capture_logs() as lines:
        await dispatch(
            world.ctx, Request(Caller("c" * 64, False), "quote", {"docker": "x y"}, "rpc")
        )

    assert 1 == len(lines)
    assert {"request_id", "caller", "method", "outcome", "ms", "door"} <= lines[0].keys()


def test_the_instances_key_is_made_once_and_only_its_owner_reads_it(tmp_path):
    path = tmp_path / "instance.key"
    key = load_key(path)

    assert key == load_key(path)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_the_database_is_private_and_refuses_a_future_version(tmp_path):
    path = tmp_path / "state" / "enclaved.sqlite"
    SqliteStore(path).close()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    db = sqlite3.connect(path, isolation_level=None)
    settings = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode",)]
    db.execute("PRAGMA user_version = 999")
    db.close()
    assert ["wal"] == settings
    with pytest.raises(RuntimeError, match="newer"):
        SqliteStore(path)


def test_the_ledger_cannot_be_rewritten(tmp_path):
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db)
    db.execute("INSERT INTO account VALUES ('a', 0)")
    db.execute("INSERT INTO entry (key, at) VALUES ('k', 0)")
    for statement in ("DELETE FROM entry", "UPDATE entry SET at = 1"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(statement)
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("INSERT INTO account VALUES ('container:x', -1)")
    db.close()


async def test_a_transaction_that_raises_leaves_nothing_behind(world):
    def breaks(tx):
        tx.post(Entry("k", {"container:a": 1, "wallet:main": -1}), 0)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        await world.store.write(breaks)
    assert 0 == await world.balance("container:a")
    assert await world.store.write(
        lambda tx: tx.post(Entry("k", {"container:a": 1, "wallet:main": -1}), 0)
    )


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_the_command_line_helps(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "bot", *arguments], capture_output=True, text=True, cwd=REPO
    )

    assert (0, "usage: enclaved") == (done.returncode, done.stdout[:15])


def test_expected_failures_are_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "bot", "run", "--config", "/none"],
        capture_output=True,
        text=True,
        cwd=REPO,
    )

    assert (1, "enclaved: error: cannot read /none: No such file or directory\n") == (
        done.returncode,
        done.stderr,
    )


def test_python_without_asserts_is_refused():
    done = subprocess.run(
        [sys.executable, "-O", "-m", "bot", "--help"], capture_output=True, text=True, cwd=REPO
    )

    assert (1, "enclaved: error: never run this under python -O\n") == (
        done.returncode,
        done.stderr,
    )


async def test_nudges_wake_a_loop_early_and_many_are_one(autojump_clock):
    nudge, started = Nudge(), trio.current_time()
    nudge()
    nudge()
    assert await nudge.wait(100)
    assert started == trio.current_time()
    assert not await nudge.wait(100)
    assert started + 100 == trio.current_time()


async def test_what_is_queued_is_published_until_every_relay_has_it(world):
    async with relay() as (server, url), pool(url) as client:
        dead = "ws://127.0.0.1:1"
        client.add(dead)
        await trio.sleep(0.1)
        event = note(content="queued")
        await world.store.write(lambda tx: tx.enqueue(event, [url, dead], world.clock.now()))
        outlet = Outlet(client, None, ())
        assert 1 == await drain(world.store, outlet, world.clock)
        assert ["queued"] == [e.content for e in await server.query([Filter()])]
        world.clock.advance(5)
        left = await world.store.read(lambda tx: tx.outbox(world.clock.now(), 10))
        assert [(dead,)] == [item.relay_urls for item in left]
        world.clock.advance(7 * 3_600)
        await drain(world.store, outlet, world.clock)
        assert [] == await world.store.read(
            lambda tx: tx.outbox(world.clock.now() + 10_000, 10)
        ), "given up at last"


async def test_strangers_relays_get_the_event_and_nothing_else(monkeypatch):
    import bot.server.outlet

    async def anywhere(host, port):
        return host

    async with relay() as (server, url):
        client = RelayPool(SystemClock())
        outlet = Outlet(client, None, ())
        assert [url] == await outlet.deliver(note(), [url]), "a private address is not dialled"
        monkeypatch.setattr(bot.server.outlet, "resolve_public", anywhere)
        event = note(content="receipt")
        assert [] == await outlet.deliver(event, [url])
        assert [event.id] == [e.id for e in await server.query([Filter()])]
        assert frozenset() == client.urls, "it did not become one of ours"
        assert {"ws://a..b", "http://x"} == set(
            await outlet.deliver(event, ["ws://a..b", "http://x"])
        )
