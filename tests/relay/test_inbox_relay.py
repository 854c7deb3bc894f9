"""What a closed relay takes: by and to whom it serves. Over real websockets."""

import httpcore
import orjson
import pytest

from bot.relay.event_tables import Budget
from nips import kinds, nip01
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip11 import RelayLimits
from tests.relay.conftest import note, relay
from tests.relay.test_server import publish, stored, talk

US, CONTAINER, WALLET, CLIENT, STRANGER = (SecretKey.generate() for _ in range(5))


async def serve_all(server):
    await server.serve_for("instance", [US.pubkey])
    await server.serve_for("containers", [CONTAINER.pubkey])
    await server.serve_for("wallet", [WALLET.pubkey])


def to(key, *more):
    return [("p", key.pubkey), *more]


TAKEN = {
    "an RPC to us": (CLIENT, kinds.RPC, to(US)),
    "our reply to a client": (US, kinds.RPC, to(CLIENT)),
    "a mention of us": (CLIENT, kinds.NOTE, to(US)),
    "a mention of us among others": (CLIENT, kinds.NOTE, to(STRANGER, *to(US))),
    "a wrap for a container": (CLIENT, kinds.GIFT_WRAP, to(CONTAINER)),
    "a receipt for a container": (STRANGER, kinds.ZAP_RECEIPT, to(CONTAINER)),
    "any client's request to the wallet": (STRANGER, kinds.WALLET_REQUEST, to(WALLET)),
    "the wallet's answer": (WALLET, kinds.WALLET_RESPONSE, to(STRANGER)),
    "the wallet's announcement": (WALLET, kinds.WALLET_INFO, []),
}
REFUSED = {
    "a note to the world": (STRANGER, kinds.NOTE, []),
    "a note to another": (STRANGER, kinds.NOTE, to(CLIENT)),
    "a stranger's profile": (STRANGER, kinds.PROFILE, []),
    "a message over our bus": (STRANGER, kinds.RPC, to(CLIENT)),
    "any ephemeral": (STRANGER, 20_001, []),
    "one that only quotes us": (STRANGER, kinds.NOTE, [("q", US.pubkey), ("e", US.pubkey)]),
    "a deletion of nothing here": (STRANGER, kinds.DELETION, [("e", "0" * 64)]),
}


@pytest.mark.parametrize("name", TAKEN)
async def test_taken(name):
    key, kind, tags = TAKEN[name]
    async with relay(is_open=False) as (server, url), talk(url) as raw:
        await serve_all(server)
        assert await publish(raw, note(key, kind=kind, tags=tags)) == [True, ""]


@pytest.mark.parametrize("name", REFUSED)
async def test_refused(name):
    key, kind, tags = REFUSED[name]
    async with relay(is_open=False) as (server, url), talk(url) as raw:
        await serve_all(server)
        accepted, reason = await publish(raw, note(key, kind=kind, tags=tags))
        assert (accepted, reason.partition(":")[0]) == (False, "restricted")
        assert await server.query([Filter()]) == []


async def test_a_refused_ephemeral_reaches_nobody():
    async with relay(is_open=False) as (server, url), talk(url) as a, talk(url) as b:
        await serve_all(server)
        await b.say("REQ", "s", {"kinds": [kinds.RPC]})
        await publish(a, note(STRANGER, kind=kinds.RPC, tags=to(CLIENT)))
        await publish(a, wanted := note(STRANGER, kind=kinds.RPC, tags=to(US)))
        assert wanted.id == (await b.hear())[2]["id"]


async def test_who_left_something_may_delete_it():
    async with relay(is_open=False) as (server, url), talk(url) as raw:
        await serve_all(server)
        await publish(raw, left := note(STRANGER, tags=to(US)))
        by_another = note(CLIENT, kind=kinds.DELETION, tags=[("e", left.id)])
        assert (await publish(raw, by_another))[1].startswith("restricted:")
        assert [left.id] == [e.id for e in await server.query([Filter()])]
        deletion = note(STRANGER, kind=kinds.DELETION, tags=[("e", left.id)])
        assert await publish(raw, deletion) == [True, ""]
        assert [deletion.id] == [e.id for e in await server.query([Filter()])]


async def test_containers_come_and_go():
    async with relay(is_open=False) as (server, url), talk(url) as raw:
        await serve_all(server)
        other = SecretKey.generate()
        assert not (await publish(raw, note(tags=to(other))))[0]
        await server.serve_for("containers", [other.pubkey])
        assert (await publish(raw, note(tags=to(other))))[0]
        assert not (await publish(raw, note(tags=to(CONTAINER))))[0]
        assert (await publish(raw, note(tags=to(US))))[0], "other groups stay"


async def test_escrow_that_is_away_for_a_while_stays():
    one, two = SecretKey.generate(), SecretKey.generate()
    async with relay(is_open=False) as (server, url), talk(url) as raw:
        await server.serve_also("escrow", [one.pubkey])
        await server.serve_also("escrow", [two.pubkey])
        await server.serve_also("escrow", [])
        for key in (one, two):
            assert await publish(raw, note(key, kind=kinds.ANNOUNCEMENT)) == [True, ""]
        assert 2 == (await server.stored())[Budget.SERVED].events


async def test_it_knows_after_a_restart_whom_it_serves(tmp_path):
    path = tmp_path / "relay.sqlite"
    async with relay(is_open=False, path=path) as (server, _):
        await serve_all(server)
    async with relay(is_open=False, path=path) as (server, url), talk(url) as raw:
        assert await publish(raw, note(CLIENT, tags=to(US))) == [True, ""]
        assert not (await publish(raw, note(CLIENT)))[0]


async def test_anybody_reads_what_is_stored():
    async with relay(is_open=False) as (server, url), talk(url) as raw:
        await server.publish(ours := note(US))
        assert [ours.id] == [e["id"] for e in await stored(raw, kinds=[1])]


@pytest.mark.parametrize("is_open", [True, False])
async def test_nip11_says_so(is_open):
    async with relay(is_open=is_open) as (_, url), httpcore.AsyncConnectionPool() as http:
        response = await http.request(
            "GET", url.replace("ws", "http"), headers={"Accept": "application/nostr+json"}
        )
        document = orjson.loads(response.content)
        assert document["limitation"]["restricted_writes"] is not is_open
        assert ("inbox" in document["description"]) is not is_open


async def test_what_we_ask_is_not_crowded_out_by_strangers():
    """Escrow's announcement from an hour ago, behind five hundred newer ones that carry its tag."""
    limits = RelayLimits(max_limit=20)
    tags = [("r", "https://example.com/escrow")]
    async with relay(limits) as (server, url), talk(url) as raw:
        await server.serve_for("escrow", [WALLET.pubkey])
        old = note(WALLET, kind=kinds.ANNOUNCEMENT, tags=tags, at=note().created_at - 3_600)
        await publish(raw, old)
        for _ in range(30):
            await publish(raw, note(kind=kinds.ANNOUNCEMENT, tags=tags))
        wanted = Filter(kinds=frozenset({kinds.ANNOUNCEMENT}), tags={"r": frozenset({tags[0][1]})})
        assert old in await server.query([wanted])


async def test_too_much_is_answered_with_what_was_found_and_a_reason():
    limits = RelayLimits(query_rows=300)
    async with relay(limits) as (server, url), talk(url) as raw:
        for n in range(500):
            await server.publish(note(US, str(n), tags=[("t", "rare" if n == 499 else "x")]))
        raw.ws.send(nip01.encode("REQ", "s", {"authors": [US.pubkey], "#t": ["rare"]}))
        answer = await raw.hear()
        while answer[0] == "EVENT":
            assert answer[2]["content"] == "499"
            answer = await raw.hear()
        assert (answer[0], answer[2].partition(":")[0]) == ("CLOSED", "error")
        assert server.load().live.filters == 0
        assert (await raw.say("COUNT", "c", {}))[2].startswith("error:")
        assert await raw.say("COUNT", "c", {"#t": ["rare"]}) == ["COUNT", "c", {"count": 1}]


async def test_the_same_subscription_again_and_again_is_one():
    async with relay() as (server, url), talk(url) as raw:
        for n in range(200):
            await raw.say("REQ", "s", {"kinds": [n], "#p": [US.pubkey]})
        assert (server.load().live.filters, server.load().live.values) == (1, 2)
        raw.ws.send(nip01.encode("CLOSE", "s"))
        assert (await raw.say("COUNT", "c", {}))[0] == "COUNT"
        assert (server.load().live.filters, server.load().live.values) == (0, 0)


async def test_live_values_are_bounded_by_connection_and_in_all():
    limits = RelayLimits(connection_values=100, all_values=150)
    values = [f"{n:064x}" for n in range(60)]
    async with relay(limits) as (server, url), talk(url) as one:
        assert (await one.say("REQ", "a", {"#p": values}))[0] == "EOSE"
        refused = await one.say("REQ", "b", {"#p": values})
        assert (refused[0], refused[2].partition(":")[0]) == ("CLOSED", "rate-limited")
        assert (await one.say("REQ", "a", {"#p": values}))[0] == "EOSE", "in place of itself"
        async with talk(url) as two, talk(url) as three:
            assert (await two.say("REQ", "a", {"#p": values}))[0] == "EOSE"
            assert (await three.say("REQ", "a", {"#p": values}))[0] == "CLOSED"
            assert server.load().live.values == 120
