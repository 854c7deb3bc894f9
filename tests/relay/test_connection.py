"""The client's side, against relays that fail in every way that we have heard of."""

import orjson
import pytest
import trio

from bot.clock import SystemClock
from bot.devstack.engine import free_port
from bot.relay.connection import Outcome
from bot.relay.courier import bring
from nips import kinds, nip01
from nips.event import VerifiedEvent
from nips.filters import Filter
from tests.fakes import FakeClock
from tests.relay.conftest import eventually, hostile, note, pool, relay

ONES = (Filter(kinds=frozenset({1})),)


async def quiet(relay, ws, message):
    """Says nothing but EOSE and OK."""
    if message[0] == "REQ":
        ws.send(nip01.encode("EOSE", message[1]))
    elif message[0] == "EVENT":
        ws.send(nip01.encode("OK", message[1]["id"], True, ""))


async def test_each_event_is_heard_once_from_two_relays():
    event = note()
    async with relay() as (one, url1), relay() as (two, url2), pool(url1, url2) as client:
        client.subscribe("s", ONES)
        await trio.sleep(0.1)
        await one.publish(event)
        await two.publish(event)
        await two.publish(other := note())
        assert {event.id, other.id} == {
            (await client.receive()).event.id,
            (await client.receive()).event.id,
        }
        with trio.move_on_after(0.2) as scope:
            await client.receive()
        assert scope.cancelled_caught


async def test_a_forged_copy_is_not_delivered_and_does_not_hide_the_true_event():
    event = note()
    forged = event.as_dict() | {"sig": "00" * 64}

    async def liar(relay, ws, message):
        if message[0] == "REQ":
            ws.send(nip01.encode("EVENT", message[1], forged))

    async with hostile(liar) as (_, bad), relay() as (good, url), pool(bad, url) as client:
        client.subscribe("s", ONES)
        await trio.sleep(0.1)
        await good.publish(event)
        heard = (await client.receive()).event
        assert (event.sig, VerifiedEvent) == (heard.sig, type(heard))


async def test_it_reconnects_and_resubscribes_after_a_disconnect_in_mid_frame():
    async def cut(relay, ws, message):
        if message[0] == "REQ" and relay.connections < 3:
            await relay.stream.send_all(b"\x81\x7e\x10\x00half a frame")
            await trio.aclose_forcefully(relay.stream)

    async with hostile(cut) as (bad, url), pool(url) as client:
        client.subscribe("s", ONES)
        await eventually(lambda: bad.connections >= 3)
        await eventually(lambda: [m[0] for m in bad.heard].count("REQ") >= 3)


async def test_a_silent_peer_is_noticed_by_the_heartbeat():
    connections = 0

    async def accept_and_hang(stream):
        nonlocal connections
        key = (
            (await stream.receive_some(4_096))
            .split(b"Sec-WebSocket-Key: ")[1]
            .split(b"\r\n")[0]
            .decode()
        )
        from websockets.utils import accept_key

        answer = f"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}\r\n\r\n"
        await stream.send_all(answer.encode())
        # Counted once it is open: the test ends, and hangs up, at the third.
        connections += 1
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, accept_and_hang, 0)
        url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with pool(url):
            await eventually(lambda: connections >= 3)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "reason", ["error: shutting down idle", "rate-limited: too many", "auth-required: who?"]
)
async def test_closed_is_never_the_end_of_a_subscription(reason):
    closed = 0

    async def closes_twice(relay, ws, message):
        nonlocal closed
        if message[0] == "REQ":
            if closed < 2:
                closed += 1
                ws.send(nip01.encode("CLOSED", message[1], reason))
            else:
                ws.send(nip01.encode("EVENT", message[1], note(content="at last").as_dict()))

    async with hostile(closes_twice) as (_, url), pool(url) as client:
        client.subscribe("s", ONES)
        with trio.fail_after(5):
            assert (await client.receive()).event.content == "at last"


async def test_the_cursor_is_our_clock_never_a_strangers_created_at():
    clock = FakeClock(unix=SystemClock().now())

    async def from_the_future(relay, ws, message):
        if message[0] == "REQ":
            event = note(at=4_000_000_000)
            ws.send(nip01.encode("EVENT", message[1], event.as_dict()))
            ws.send(nip01.encode("EOSE", message[1]))
            if relay.connections == 1:
                await trio.sleep(0.1)
                await trio.aclose_forcefully(relay.stream)

    async with hostile(from_the_future) as (bad, url), pool(url, clock=clock) as client:
        client.subscribe("s", ONES, back_s=120)
        await client.receive()
        await eventually(
            lambda: bad.connections >= 2 and [m[0] for m in bad.heard].count("REQ") >= 2
        )
        since = [m[2].get("since") for m in bad.heard if m[0] == "REQ"][-1]
        assert clock.now() - 120 == since


def asked_since(bad):
    return [m[2].get("since") for m in bad.heard if m[0] == "REQ"]


async def test_since_is_right_after_our_clock_was_a_day_ahead():
    """EOSE came while it was ahead; it was set right, a minute passed, and the relay came back."""
    real = SystemClock().now()
    clock = FakeClock(unix=real + 86_400)

    async def comes_and_goes(relay, ws, message):
        if message[0] == "REQ":
            ws.send(nip01.encode("EOSE", message[1]))
            if relay.connections == 1:
                await trio.sleep(0.1)
                clock.unix = real
                clock.advance(60)
                await trio.aclose_forcefully(relay.stream)

    async with hostile(comes_and_goes) as (bad, url), pool(url, clock=clock) as client:
        client.subscribe("s", ONES, back_s=120)
        await eventually(lambda: len(asked_since(bad)) >= 2)

        assert asked_since(bad) == [real + 86_400 - 120, real - 120]


async def test_a_live_event_is_heard_soon_after_our_clock_was_set_back():
    """The connection stands all the while; the relay holds back what is older than it was asked for."""
    real = SystemClock().now()
    clock = FakeClock(unix=real + 86_400)
    async with relay() as (server, url), pool(url, clock=clock) as client:
        client.subscribe("s", ONES, back_s=120)
        await trio.sleep(0.1)
        clock.unix = real
        await server.publish(note(content="live"))
        with trio.fail_after(5):
            assert (await client.receive()).event.content == "live"


async def test_who_waits_for_a_relay_that_comes_up_late_is_woken():
    port = free_port()
    async with pool() as client, trio.open_nursery() as nursery:
        client.add(f"ws://127.0.0.1:{port}")
        came = trio.Event()

        async def wait():
            await client.wait_connected()
            came.set()

        nursery.start_soon(wait)
        # Several attempts fail meanwhile.
        await trio.sleep(0.5)
        assert not came.is_set()
        async with relay(port=port):
            with trio.fail_after(5):
                await came.wait()


async def test_one_event_published_twice_at_once_is_answered_twice():
    async def once_for_both(relay, ws, message):
        if message[0] == "EVENT" and [m[0] for m in relay.heard].count("EVENT") == 2:
            ws.send(nip01.encode("OK", message[1]["id"], True, ""))

    outcomes = []
    async with hostile(once_for_both) as (_, url), pool(url) as client:

        async def publish(event):
            outcomes.extend((await client.publish(event)).values())

        event = note()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, event)
            nursery.start_soon(publish, event)

    assert [o.outcome for o in outcomes] == [Outcome.ACCEPTED] * 2


@pytest.mark.parametrize("spell", [lambda url: f"{url}/", lambda url: url.replace("ws", "WS")])
async def test_one_relay_is_one_however_it_is_spelt(spell):
    async with hostile(quiet) as (bad, url), pool(url) as client:
        again = spell(url)
        assert client.add(again) is client.add(url)
        outcomes = await client.publish(note(), [again])

        assert {again: Outcome.ACCEPTED} == {u: o.outcome for u, o in outcomes.items()}
        assert (1, {url}) == (bad.connections, client.urls)


# What relays send instead of ["OK", id, true, ""], after the id; and whether the event has arrived.
OKS = [
    ([True, ""], True),
    ([True], True),
    ([True, None], True),
    ([True, "", "more", {}], True),
    ([True, 7], True),
    ([False, "duplicate: have it"], True),
    ([False, "Duplicate: have it"], True),
    ([False, "blocked: no"], False),
    ([False, None], False),
    ([False], False),
    ([False, "no duplicate: no"], False),
]


@pytest.mark.parametrize(("rest", "arrived"), OKS)
async def test_an_ok_means_the_same_to_pool_and_courier(rest, arrived):
    async def answers(relay, ws, message):
        if message[0] == "EVENT":
            ws.send(nip01.encode("OK", message[1]["id"], *rest))

    async with hostile(answers) as (_, url), pool(url) as client:
        (published,) = (await client.publish(note())).values()
        brought = await bring(note(), url, find_address=None)

    assert (arrived, arrived) == (published.outcome is Outcome.ACCEPTED, brought)


async def test_only_what_was_asked_for_is_delivered():
    async def pushy(relay, ws, message):
        if message[0] == "REQ":
            ws.send(nip01.encode("EVENT", message[1], note(kind=4).as_dict()))
            ws.send(nip01.encode("EVENT", "never asked", note().as_dict()))
            ws.send(nip01.encode("EVENT", message[1], note(content="asked").as_dict()))

    async with hostile(pushy) as (_, url), pool(url) as client:
        client.subscribe("s", ONES)
        assert (await client.receive()).event.content == "asked"


async def test_nonsense_from_a_relay_is_survived():
    async def nonsense(relay, ws, message):
        if message[0] == "REQ":
            for text in (
                b"no json",
                b"[]",
                b'["EVENT","s",{"id":1}]',
                b'["OK",1,2,3]',
                b"[" * 3_000,
                b'["COUNT","s",{}]',
            ):
                ws.send(text)
            ws.send(nip01.encode("EVENT", message[1], note(content="still here").as_dict()))

    async with hostile(nonsense) as (_, url), pool(url) as client:
        client.subscribe("s", ONES)
        assert (await client.receive()).event.content == "still here"


async def test_a_huge_frame_ends_the_connection_and_it_comes_back():
    async def huge(relay, ws, message):
        if message[0] == "REQ":
            if relay.connections == 1:
                ws.send(b'["NOTICE","' + b"x" * 2_000_000 + b'"]')
            else:
                ws.send(nip01.encode("EVENT", message[1], note(content="after").as_dict()))

    async with hostile(huge) as (_, url), pool(url) as client:
        client.subscribe("s", ONES)
        with trio.fail_after(5):
            assert (await client.receive()).event.content == "after"


async def test_publish_tells_an_outcome_per_relay_and_never_waits_for_a_dead_one():
    async def rejects(relay, ws, message):
        if message[0] == "EVENT":
            ws.send(nip01.encode("OK", message[1]["id"], False, "blocked: not you"))

    async def says_nothing(relay, ws, message):
        pass

    dead = "ws://127.0.0.1:1"
    async with (
        hostile(rejects) as (_, no), hostile(says_nothing) as (_, mute), relay() as (_, yes),
        pool(yes, no, mute) as client,
    ):  # fmt: skip
        await trio.sleep(0.1)
        started = trio.current_time()
        outcomes = await client.publish(note(), [yes, no, mute, dead])
        assert trio.current_time() - started < 2
        assert {
            yes: Outcome.ACCEPTED, no: Outcome.REJECTED, mute: Outcome.TIMEOUT, dead: Outcome.NOT_CONNECTED,
        } == {url: o.outcome for url, o in outcomes.items()}  # fmt: skip
        assert outcomes[no].reason == "blocked: not you"


async def test_a_slow_consumer_slows_the_relay_and_loses_nothing():
    """Far more than all queues hold is sent before the first event is taken."""
    async with relay() as (server, url), pool(url) as client:
        client.subscribe("s", [Filter(kinds=frozenset({20_001}))])
        await trio.sleep(0.1)
        total = 3_000
        for number in range(total):
            await server.publish(note(kind=20_001, content=str(number)))
            if number % 100 == 0:
                await trio.sleep(0)
        heard = [(await client.receive()).event.content for _ in range(total)]
        assert [str(n) for n in range(total)] == heard


async def test_auth_challenges_are_answered_with_the_relays_own_url(key):
    async def challenges(relay, ws, message):
        if message[0] == "REQ":
            ws.send(nip01.encode("AUTH", "prove it"))

    async with hostile(challenges) as (bad, url), pool(url, key=key) as client:
        client.subscribe("s", ONES)
        await eventually(lambda: any(m[0] == "AUTH" for m in bad.heard))
        answer = next(m[1] for m in bad.heard if m[0] == "AUTH")
        assert (kinds.CLIENT_AUTH, key.pubkey) == (answer["kind"], answer["pubkey"])
        assert ["relay", url] in answer["tags"]
        assert orjson.dumps(answer)
