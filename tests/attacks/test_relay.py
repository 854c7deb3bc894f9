"""Live attacks on the embedded relay in a process of its own, from addresses of one machine."""

import json
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack, contextmanager, suppress

import orjson
import pytest
import trio

from bot.clock import SystemClock
from bot.relay.gate import raise_descriptor_limit
from nips import kinds
from nips.event import sign_event
from nips.keys import SecretKey
from tests.attacks.relay_process import BOT
from tests.attacks.wire import PING, SHAKE, connect, drain, frame, message, websocket
from tests.relay.test_server import talk

# One relay with a hundred thousand events is enough for all of them.
pytestmark = pytest.mark.xdist_group("relay")
NOW = SystemClock().now
EVENTS = 100_000
OTHER = "127.0.0.3"
SOURCES = iter(range(1, 255))
MOST_MIB = 30
# The aim is 50 ms; a machine that does other things at the same time must not fail this.
MOST_MS = 500


class Attacked:
    """The process, and what it says of itself."""

    def __init__(self, folder, events, **limits):
        arguments = [str(folder), str(events), *(f"{k}={v}" for k, v in limits.items())]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.relay_process", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.port = json.loads(self.process.stdout.readline())["port"]
        self.url = f"ws://127.0.0.1:{self.port}"

    def load(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    async def until(self, condition, seconds=20):
        with trio.fail_after(seconds):
            while not condition(self.load()):
                await trio.sleep(0.1)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@contextmanager
def attacked(folder, events=0, **limits):
    relay = Attacked(folder, events, **limits)
    try:
        yield relay
    finally:
        relay.kill()


@contextmanager
def attacking(name, port, source):
    attacker = subprocess.Popen(
        [sys.executable, "-m", "tests.attacks.attackers", name, str(port), source],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
        assert attacker.poll() is None, "it attacks to the end"
    finally:
        attacker.kill()
        attacker.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A hundred thousand events."""
    made = tmp_path_factory.mktemp("relay")
    with attacked(made, EVENTS):
        return made


@pytest.fixture(scope="module")
def full(folder):
    with attacked(folder) as relay:
        yield relay


@pytest.fixture(scope="module")
def unhurried(folder, tmp_path_factory):
    """As full, without limits of rates: what is left is that turns are fair."""
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("relay") / "copy")
    with attacked(copy, queries_per_minute=10**9, frames_per_minute=10**9) as relay:
        yield relay


@pytest.fixture
def source():
    """An address of its own for each test: what one has used up is not the next one's."""
    return f"127.0.1.{next(SOURCES)}"


async def p99_ms(url, pings=150):
    """How long a client waits for the bot's answer, through its own connection."""
    key, took = SecretKey.generate(), []
    async with talk(url) as raw:
        await raw.say("REQ", "replies", {"kinds": [kinds.RPC], "#p": [key.pubkey], "limit": 0})
        for number in range(pings):
            event = sign_event(key, kinds.RPC, str(number), [("p", BOT.pubkey)], NOW())
            began = trio.current_time()
            raw.ws.send(orjson.dumps(["EVENT", event.as_dict()]))
            while (await raw.hear())[0] != "EVENT":
                pass
            took.append((trio.current_time() - began) * 1_000)
            await trio.sleep(0.01)
    return sorted(took)[int(pings * 0.99)]


@pytest.mark.parametrize("name", ["many_filters", "too_many_values", "broad_queries", "crowd"])
async def test_others_are_answered_while_one_asks_for(name, unhurried, source, record_property):
    calm = await p99_ms(unhurried.url)
    with attacking(name, unhurried.port, source):
        await trio.sleep(0.5)
        p99 = await p99_ms(unhurried.url)
        async with talk(unhurried.url) as raw:
            began = trio.current_time()
            answer = await raw.say("REQ", "q", {"kinds": [1_002], "limit": 1})
            query_ms = (trio.current_time() - began) * 1_000
        assert unhurried.load()["connections"] >= 1
    record_property(
        "figure",
        f"relay under {name}: others' p99 {p99:.1f} ms (calm {calm:.1f} ms), a query {query_ms:.0f} ms",
    )
    assert answer[0] == "EVENT"
    assert p99 < MOST_MS
    assert query_ms < 3 * MOST_MS


@pytest.mark.parametrize(
    "name", ["many_filters", "too_many_values", "crowd", "tiny_frames", "pings"]
)
async def test_others_are_answered_under(name, full, source, record_property):
    with attacking(name, full.port, source):
        await trio.sleep(0.5)
        p99 = await p99_ms(full.url)
    record_property("figure", f"relay with its limits, under {name}: others' p99 {p99:.1f} ms")
    assert p99 < MOST_MS


async def grown_mib(relay, attack):
    """How much resident memory grows through an attack, at its highest."""
    before, highest = relay.load()["rss_mib"], 0.0
    async with trio.open_nursery() as nursery:

        async def watch():
            nonlocal highest
            while True:
                highest = max(highest, relay.load()["rss_mib"])
                await trio.sleep(0.1)

        nursery.start_soon(watch)
        await attack()
        await trio.sleep(0.3)
        nursery.cancel_scope.cancel()
    return highest - before


async def send_until_cut(stream, data, most_bytes):
    sent = 0
    with trio.move_on_after(15):
        try:
            while sent < most_bytes:
                await stream.send_all(data)
                sent += len(data)
        except trio.BrokenResourceError:
            return True
    return False


async def test_memory_unread_pings(full, source, record_property):
    async def attack():
        for _ in range(5):
            async with websocket(full.port, source) as stream:
                assert await send_until_cut(stream, frame(bytes(125), PING) * 500, 200 << 20)

    grown = await grown_mib(full, attack)
    record_property("figure", f"relay, unread pings: RSS +{grown:.1f} MiB")
    assert grown < MOST_MIB


async def test_memory_values_in_filters(unhurried, source, record_property):
    """64 REQs of 4 filters of 950 values, and of as many as are taken, from each of 8 connections."""
    values = [f"{n:060x}" for n in range(950)]
    most = 0

    async def one():
        async with websocket(unhurried.port, source) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            for n in range(64):
                filters = [{"#p": [f"{n:02x}{m:02x}{v}" for v in values]} for m in range(4)]
                await stream.send_all(message("REQ", f"a{n}", *filters))
                await stream.send_all(message("REQ", f"b{n}", {"#p": filters[0]["#p"][:200]}))
            await trio.sleep(3)
            nonlocal most
            most = max(most, unhurried.load()["values"])
            nursery.cancel_scope.cancel()

    async def attack():
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(one)

    grown = await grown_mib(unhurried, attack)
    record_property("figure", f"relay, {most} values in filters: RSS +{grown:.1f} MiB")
    assert 1_000 < most <= 8_000, "of one address, all together"
    assert grown < MOST_MIB
    await unhurried.until(lambda load: load["values"] == load["filters"] == 0)


async def test_memory_answers_that_nobody_reads(unhurried, source, record_property):
    async def one():
        with suppress(trio.BrokenResourceError), trio.move_on_after(4):
            async with websocket(unhurried.port, source) as stream:
                for n in range(1_000):
                    await stream.send_all(message("REQ", f"s{n % 20}", {}))
                await trio.sleep_forever()

    async def attack():
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(one)

    grown = await grown_mib(unhurried, attack)
    record_property("figure", f"relay, answers unread by 60 clients: RSS +{grown:.1f} MiB")
    assert grown < MOST_MIB


async def test_memory_deleted_names(full, record_property):
    """400 deletions of 190 addresses each, that never were."""
    key = SecretKey.generate()
    deletions = [
        sign_event(
            key, kinds.DELETION, "",
            [("a", f"30000:{key.pubkey}:{n}.{m}") for m in range(190)], NOW(),
        )
        for n in range(400)
    ]  # fmt: skip

    async def attack():
        async with talk(full.url) as raw:
            for deletion in deletions:
                with trio.fail_after(10):
                    assert (await raw.say("EVENT", deletion.as_dict()))[2]

    grown = await grown_mib(full, attack)
    record_property("figure", f"relay, 76,000 deleted addresses: RSS +{grown:.1f} MiB")
    assert grown < MOST_MIB


async def open_many(stack, port, source, count, first_bytes):
    for _ in range(count):
        stream = await connect(port, source)
        stack.push_async_callback(trio.aclose_forcefully, stream)
        try:
            await stream.send_all(first_bytes)
        except trio.BrokenResourceError:
            pass


@pytest.mark.parametrize(
    ("what", "first_bytes"),
    [("idle websockets", SHAKE), ("half handshakes", SHAKE[:60]), ("silence", b"")],
)
async def test_a_thousand_connections_of_one_address_shut_out_no_other(
    full, source, what, first_bytes
):
    raise_descriptor_limit()
    await full.until(lambda load: load["connections"] == 0)
    async with AsyncExitStack() as stack:
        await open_many(stack, full.port, source, 1_000, first_bytes)
        assert 0 < full.load()["connections"] <= 64
        with trio.fail_after(5):
            async with websocket(full.port, OTHER) as stream:
                await stream.send_all(frame(b"", PING))
                assert await stream.receive_some(100)
    await full.until(lambda load: load["connections"] == 0)


async def test_when_all_places_are_taken_a_newcomer_still_gets_in(tmp_path):
    with attacked(tmp_path, max_connections=60, max_connections_per_address=40) as relay:
        async with AsyncExitStack() as stack:
            for source in ("127.0.0.4", "127.0.0.5"):
                await open_many(stack, relay.port, source, 50, SHAKE)
            await relay.until(lambda load: load["connections"] == 60)
            with trio.fail_after(5):
                async with websocket(relay.port, OTHER) as stream:
                    await stream.send_all(frame(b"", PING))
                    assert await stream.receive_some(100)


async def test_who_wants_nothing_and_says_nothing_makes_room(tmp_path, source):
    with attacked(tmp_path, idle_s=1) as relay:
        async with websocket(relay.port, source) as idle, websocket(relay.port, OTHER) as other:
            await other.send_all(message("REQ", "s", {"kinds": [1]}))
            with trio.fail_after(10):
                await drain(idle)
            await relay.until(lambda load: load["connections"] == 1)


async def test_a_flood_and_a_kill_leave_what_escrow_and_we_said(tmp_path):
    """Announcements under the same tag, from a new key each and from one, past all bounds; then kill -9."""
    escrow, flooder = SecretKey.generate(), SecretKey.generate()
    tags = [("r", "https://example.com/escrow")]
    announcement = sign_event(BOT, kinds.ANNOUNCEMENT, "escrow", tags, NOW() - 3_000)
    limits = {"max_stored_events": 200}
    with attacked(tmp_path, **limits) as relay:
        async with talk(relay.url) as raw:
            assert (await raw.say("EVENT", announcement.as_dict()))[2]
            for number in range(600):
                key = flooder if number % 2 else SecretKey.generate()
                event = sign_event(key, kinds.NOTE, str(number), tags, NOW())
                assert (await raw.say("EVENT", event.as_dict()))[2]
        assert relay.load()["stored"] == 201
    with attacked(tmp_path, **limits) as relay:
        async with talk(relay.url) as raw:
            answer = await raw.say("REQ", "q", {"kinds": [kinds.ANNOUNCEMENT]})
            assert answer[2]["id"] == announcement.id
            event = sign_event(escrow, kinds.NOTE, "after", [], NOW())
            await raw.hear()
            assert (await raw.say("EVENT", event.as_dict()))[2]
        assert relay.load()["stored"] == 201
