"""The embedded relay, spoken to over real websockets."""

from contextlib import aclosing, asynccontextmanager

import httpcore
import orjson
import pytest
import trio

from bot.clock import SystemClock
from bot.relay.connection import Outcome
from bot.relay.event_tables import Budget
from bot.relay.websocket import connect
from nips import nip01, nip42
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip11 import RelayLimits
from tests.relay.conftest import eventually, note, pool, relay

NOW = SystemClock().now


class Raw:
    """Send any text, read the answers."""

    def __init__(self, websocket, answers):
        self.ws, self.answers = websocket, answers

    async def say(self, *parts):
        self.ws.send(parts[0] if isinstance(parts[0], bytes) else nip01.encode(*parts))
        return await self.hear()

    async def hear(self):
        with trio.fail_after(3):
            return orjson.loads(await anext(self.answers))


@asynccontextmanager
async def talk(url):
    async with (
        connect(url, max_message_bytes=1 << 20, max_queued_bytes=1 << 22) as websocket,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(websocket.run_writer)
        async with aclosing(websocket.messages()) as answers:
            yield Raw(websocket, answers)
        nursery.cancel_scope.cancel()


async def publish(raw, event):
    return (await raw.say("EVENT", event.as_dict()))[2:]


async def stored(raw, **wanted):
    raw.ws.send(nip01.encode("REQ", "q", wanted))
    found = []
    while True:
        answer = await raw.hear()
        if answer[0] != "EVENT":
            raw.ws.send(nip01.encode("CLOSE", "q"))
            return found
        found.append(answer[2])


async def test_nip01_stored_and_live():
    async with relay() as (_, url), talk(url) as a, talk(url) as b:
        first, second = note(), note()
        assert await publish(a, first) == [True, ""]
        assert ["EVENT", "s", first.as_dict() | {"tags": []}] == await b.say(
            "REQ", "s", {"kinds": [1]}
        )
        assert await b.hear() == ["EOSE", "s"]
        await publish(a, second)
        assert second.id == (await b.hear())[2]["id"]


@pytest.mark.parametrize(
    "frame",
    [b"not json", b"[]", b'["EVENT"]', b'["REQ","",{}]', b'["REQ","x",{"#toolong":[]}]', b'["REQ","x",{"kinds":["a"]}]',
     b'["NOPE",1]', b'{"a":1}', b'["EVENT",{"id":1}]', b"[" * 5_000, b'["REQ","x",{"ids":["abc"]}]'],
)  # fmt: skip
async def test_nonsense_gets_a_notice_and_the_connection_stays(frame):
    async with relay() as (_, url), talk(url) as raw:
        assert (await raw.say(frame))[0] in ("NOTICE", "OK", "CLOSED")
        assert await publish(raw, note()) == [True, ""]


async def test_forged_events_are_refused():
    async with relay() as (_, url), talk(url) as raw:
        event = note()
        forged = event.as_dict() | {"content": "other"}
        assert (await raw.say("EVENT", forged))[2:] == [
            False,
            "invalid: id is not the hash of the event",
        ]
        wrong = event.as_dict() | {"sig": "0" * 128}
        assert (await raw.say("EVENT", wrong))[2:] == [False, "invalid: signature does not hold"]
        assert await stored(raw, kinds=[1]) == []


async def test_replaceable_keeps_the_newest_and_of_equals_the_lower_id(key):
    async with relay() as (_, url), talk(url) as raw:
        now = NOW()
        old, new = note(key, "old", 10_002, at=now - 5), note(key, "new", 10_002, at=now)
        assert await publish(raw, new) == [True, ""]
        assert await publish(raw, old) == [True, "duplicate: have a newer event"]
        assert [new.id] == [e["id"] for e in await stored(raw, kinds=[10_002])]
        twin = note(key, "twin", 10_002, at=now)
        await publish(raw, twin)
        assert [min(new.id, twin.id)] == [e["id"] for e in await stored(raw, kinds=[10_002])]


async def test_addressable_by_d_tag(key):
    async with relay() as (_, url), talk(url) as raw:
        for d, content in (("a", "1"), ("b", "2"), ("a", "3")):
            await publish(raw, note(key, content, 30_000, [("d", d)], at=NOW() + int(content)))
        assert {"2", "3"} == {e["content"] for e in await stored(raw, kinds=[30_000])}


async def test_ephemeral_is_delivered_and_forgotten():
    async with relay() as (_, url), talk(url) as a, talk(url) as b:
        await b.say("REQ", "s", {"kinds": [20_001]})
        event = note(kind=20_001)
        await publish(a, event)
        assert event.id == (await b.hear())[2]["id"]
        assert await stored(a, kinds=[20_001]) == []


async def test_nip09_only_ones_own_and_it_stays_deleted(key):
    async with relay() as (_, url), talk(url) as raw:
        mine, other = note(key), note()
        await publish(raw, mine)
        await publish(raw, other)
        await publish(raw, note(key, kind=5, tags=[("e", mine.id), ("e", other.id)]))
        assert [other.id] == [e["id"] for e in await stored(raw, kinds=[1])]
        accepted, reason = await publish(raw, mine)
        assert (accepted, reason.startswith("blocked:")) == (False, True)


async def test_nip09_of_an_address(key):
    async with relay() as (_, url), talk(url) as raw:
        now = NOW()
        await publish(raw, note(key, "x", 30_000, [("d", "a")], at=now))
        await publish(raw, note(key, kind=5, tags=[("a", f"30000:{key.pubkey}:a")], at=now + 1))
        assert await stored(raw, kinds=[30_000]) == []
        assert await publish(raw, note(key, "y", 30_000, [("d", "a")], at=now + 2)) == [True, ""]


async def test_nip40_expired_events_are_refused_and_not_served(key):
    async with relay() as (_, url), talk(url) as raw:
        assert await publish(raw, note(tags=[("expiration", str(NOW() - 1))])) == [
            False,
            "invalid: the event has expired",
        ]
        await publish(raw, note(tags=[("expiration", str(NOW() + 2))]))
        assert len(await stored(raw, kinds=[1])) == 1
        await trio.sleep(2.5)
        assert await stored(raw, kinds=[1]) == []


async def test_events_from_the_future_are_refused():
    async with relay() as (_, url), talk(url) as raw:
        assert await publish(raw, note(at=NOW() + 10_000)) == [
            False,
            "invalid: created_at is in the future",
        ]


async def test_nip42_and_nip70_protected_events(key):
    async with relay() as (_, url), talk(url) as raw:
        protected = note(key, tags=[("-",)])
        raw.ws.send(nip01.encode("EVENT", protected.as_dict()))
        challenge = await raw.hear()
        assert challenge[0] == "AUTH"
        assert (await raw.hear())[3].startswith("auth-required:")
        wrong = nip42.answer(key, "ws://elsewhere", challenge[1], NOW())
        assert not (await raw.say("AUTH", wrong.as_dict()))[2]
        stale = nip42.answer(key, url, "another challenge", NOW())
        assert not (await raw.say("AUTH", stale.as_dict()))[2]
        assert (await raw.say("AUTH", nip42.answer(key, url, challenge[1], NOW()).as_dict()))[2]
        assert await publish(raw, protected) == [True, ""]
        assert (await publish(raw, note(tags=[("-",)])))[1].startswith("restricted:")


async def test_a_client_with_a_key_authenticates_by_itself(key):
    async with relay() as (_, url), pool(url, key=key) as client:
        outcome = (await client.publish(note(key, tags=[("-",)])))[url]
        assert Outcome.ACCEPTED is outcome.outcome


async def test_nip45_count():
    async with relay() as (_, url), talk(url) as raw:
        for _ in range(3):
            await publish(raw, note())
        assert await raw.say("COUNT", "c", {"kinds": [1], "limit": 1}) == [
            "COUNT",
            "c",
            {"count": 3},
        ]


async def test_nip11_over_http():
    async with relay() as (_, url), httpcore.AsyncConnectionPool() as http:
        response = await http.request(
            "GET", url.replace("ws", "http"), headers={"Accept": "application/nostr+json"}
        )
        document = orjson.loads(response.content)
        assert {1, 9, 11, 40, 42, 45, 70} <= set(document["supported_nips"])
        assert document["limitation"]["max_message_length"] == 262_144
        assert dict(response.headers)[b"Access-Control-Allow-Origin"] == b"*"


async def test_limits_are_kept(key):
    limits = RelayLimits(
        max_subscriptions=2, max_filters=2, max_limit=3, events_per_minute=8, max_content_bytes=100
    )
    async with relay(limits) as (_, url), talk(url) as raw:
        assert (await raw.say("REQ", "x", {}, {}, {}))[0] == "CLOSED"
        for name in "ab":
            assert (await raw.say("REQ", name, {"kinds": [7]}))[0] == "EOSE"
        assert (await raw.say("REQ", "c", {"kinds": [7]}))[2].startswith("rate-limited:")
        raw.ws.send(nip01.encode("CLOSE", "a"))
        for _ in range(5):
            await publish(raw, note())
        assert len(await stored(raw, kinds=[1], limit=50)) == 3
        assert await publish(raw, note(content="x" * 101)) == [
            False,
            "invalid: content is too long",
        ]
        for _ in range(2):
            await publish(raw, note())
        assert await publish(raw, note()) == [False, "rate-limited: slow down"]


async def test_a_huge_frame_ends_that_connection_and_no_other():
    async with relay(RelayLimits(max_message_bytes=10_000)) as (_, url), talk(url) as other:
        async with talk(url) as raw:
            raw.ws.send(b'["EVENT","' + b"x" * 20_000 + b'"]')
            with pytest.raises(StopAsyncIteration):
                while True:
                    await raw.hear()
        assert await publish(other, note()) == [True, ""]


async def test_half_a_frame_and_then_nothing_harms_nobody():
    async with relay() as (_, url), talk(url) as other:
        port = int(url.rpartition(":")[2])
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nUpg")
        await stream.aclose()
        garbage = await trio.open_tcp_stream("127.0.0.1", port)
        await garbage.send_all(bytes(range(256)) * 10)
        assert await publish(other, note()) == [True, ""]
        await garbage.aclose()


async def test_a_client_that_does_not_read_is_disconnected_not_buffered_for():
    async with (
        relay(RelayLimits(max_queued_bytes=200_000)) as (server, url),
        talk(url) as writer,
        talk(url) as deaf,
    ):
        deaf.ws.send(nip01.encode("REQ", "s", {"kinds": [20_001]}))
        await deaf.hear()
        for _ in range(200):
            await publish(writer, note(kind=20_001, content="x" * 50_000))
            assert server.load().queued_bytes < 260_000, "at most the limit and one event wait"
        await eventually(lambda: server.load().connections == 1)
        assert server.load().live.filters == 0
        await eventually(lambda: server.load().queued_bytes == 0)


async def test_the_bot_hears_events_without_a_socket(key):
    heard = []
    async with relay() as (server, url), talk(url) as raw:
        server.listen(heard.append)
        event = note()
        await publish(raw, event)
        await publish(raw, event)
        assert [event.id] == [e.id for e in heard], "once, and only what was accepted"
        await raw.say("REQ", "s", {"kinds": [1], "limit": 0})
        await server.publish(note(key, "from the bot"))
        assert (await raw.hear())[2]["content"] == "from the bot"


async def test_events_survive_a_restart_in_sqlite(tmp_path, key):
    path = tmp_path / "relay.sqlite"
    async with relay(path=path) as (_, url), talk(url) as raw:
        await publish(raw, note(key, "kept"))
        await publish(raw, note(key, "replaced", 10_002, at=NOW() - 1))
        await publish(raw, note(key, "newest", 10_002))
    async with relay(path=path) as (server, _):
        assert {"kept", "newest"} == {
            e.content for e in await server.query([Filter(authors=frozenset({key.pubkey}))])
        }


async def test_limit_zero_and_since_until(key):
    async with relay() as (_, url), talk(url) as raw:
        now = NOW()
        for offset in (0, 10, 20):
            await publish(raw, note(key, str(offset), at=now - offset))
        assert await stored(raw, kinds=[1], limit=0) == []
        assert [e["content"] for e in await stored(raw, since=now - 10)] == ["0", "10"]
        assert [
            e["content"]
            for e in await stored(
                raw, until=now - 11, authors=[SecretKey.generate().pubkey, key.pubkey]
            )
        ] == ["20"]


async def test_stored_results_larger_than_the_queue_arrive_and_the_reader_stays_live():
    limits = RelayLimits(max_queued_bytes=400_000, events_per_minute=10_000)
    async with relay(limits) as (server, url), talk(url) as raw:
        for number in range(100):
            await server.publish(note(content=f"{number} " + "x" * 20_000))
        assert len(await stored(raw, kinds=[1], limit=500)) == 100
        await raw.say("REQ", "live", {"kinds": [1], "limit": 0})
        await server.publish(note(content="live"))
        assert (await raw.hear())[2]["content"] == "live"


async def test_queries_are_limited():
    async with (
        relay(RelayLimits(max_filters=3, queries_per_minute=5)) as (_, url),
        talk(url) as raw,
    ):
        assert (await raw.say("COUNT", "c", {}, {}, {}, {}))[2] == "invalid: too many filters"
        assert (await raw.say("COUNT", "c", {}))[0] == "COUNT"
        assert (await raw.say("COUNT", "c", {}))[2].startswith("rate-limited:")


async def test_strangers_push_out_each_other_but_never_our_own(key):
    async with relay(RelayLimits(max_stored_events=10)) as (server, url), talk(url) as raw:
        await server.publish(note(key, "ours"))
        for number in range(30):
            await publish(
                raw, note(content=str(number), tags=[("p", SecretKey.generate().pubkey)])
            )
        assert "ours" in {e["content"] for e in await stored(raw, kinds=[1])}
        sizes = await server.stored()
        assert (10, 1) == (sizes[Budget.STRANGERS].events, sizes[Budget.OWN].events)


async def test_memory_for_events_is_bounded_in_bytes():
    async with relay(RelayLimits(max_stored_bytes=100_000)) as (server, url), talk(url) as raw:
        for _ in range(20):
            await publish(raw, note(content="x" * 20_000))
        size = (await server.stored())[Budget.STRANGERS]
        assert 80_000 < size.bytes <= 100_000
        assert size.events == 4
