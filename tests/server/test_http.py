"""Lightning addresses over real HTTP: what wallets ask, and what attackers send."""

import hashlib
from contextlib import asynccontextmanager
from urllib.parse import quote, urlencode

import httpcore
import orjson
import pytest
import trio

from bot.clock import SystemClock
from bot.devstack.engine import free_port
from bot.server.http.server import serve
from handlers.domain.ledger import container_account
from handlers.intents import seal
from handlers.records import Intent
from nips.bolt11 import decode_invoice_untrusted
from nips.event import sign_event, verify_event
from nips.keys import SecretKey
from nips.nip19 import npub


@pytest.fixture
async def site(world, nursery):
    port = free_port()
    await nursery.start(serve, world.ctx, "127.0.0.1", port)
    return f"http://127.0.0.1:{port}"


@asynccontextmanager
async def http():
    async with httpcore.AsyncConnectionPool() as pool:

        async def get(url):
            response = await pool.request("GET", url)
            return orjson.loads(response.content)

        yield get


async def test_a_zap_is_invoiced_credited_and_receipted(world, site):
    pubkey = await world.deployed()
    zapper = SecretKey.generate()
    async with http() as get:
        offer = await get(f"{site}/.well-known/lnurlp/{npub(pubkey)}")
        assert ("payRequest", True, world.ctx.key.pubkey) == (
            offer["tag"],
            offer["allowsNostr"],
            offer["nostrPubkey"],
        )
        tags = [("p", pubkey), ("amount", "9000"), ("relays", "wss://relay.example.com")]
        request = sign_event(zapper, 9734, "live long", tags, SystemClock().now())
        query = urlencode({"amount": 9_000, "nostr": request.json.decode()})
        answer = await get(f"{site}/lnurlp/{npub(pubkey)}/callback?{query}")
    invoice = decode_invoice_untrusted(answer["pr"])
    assert (9_000, hashlib.sha256(request.json).hexdigest()) == (
        invoice.amount_msat,
        invoice.description_hash,
    )

    world.wallet.settle(invoice.payment_hash)
    await world.run(3)
    items = await world.store.read(lambda tx: tx.outbox.list_due(world.clock.now(), 100))
    made = [await seal(world.ctx, i) for i in items if i.intent is Intent.RECEIPT]
    ((receipt, relays),) = made
    verify_event(receipt)
    assert request.json.decode() == receipt.tag("description")
    assert (answer["pr"], zapper.pubkey) == (receipt.tag("bolt11"), receipt.tag("P"))
    assert ("wss://relay.example.com",) == relays
    assert await world.balance(container_account(pubkey)) >= 13_990


async def test_without_a_zap_the_invoice_commits_to_the_metadata(world, site):
    pubkey = await world.deployed()
    async with http() as get:
        offer = await get(f"{site}/.well-known/lnurlp/{npub(pubkey)}")
        answer = await get(f"{site}/lnurlp/{npub(pubkey)}/callback?amount=5000")
    committed = decode_invoice_untrusted(answer["pr"]).description_hash

    assert hashlib.sha256(offer["metadata"].encode()).hexdigest() == committed


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/.well-known/lnurlp/nobody", "not a public key"),
        ("/.well-known/lnurlp/{stranger}", "no such container"),
        ("/lnurlp/{stranger}/callback?amount=5000", "no such container"),
        ("/lnurlp/{npub}/callback", "amount"),
        ("/lnurlp/{npub}/callback?amount=-1", "amount"),
        ("/lnurlp/{npub}/callback?amount=1e9", "amount"),
        ("/lnurlp/{npub}/callback?amount=" + quote("٣"), "amount"),
        ("/lnurlp/{npub}/callback?amount=1", "msat"),
        ("/lnurlp/{npub}/callback?amount=999999999999999", "msat"),
        ("/lnurlp/{npub}/callback?amount=5000&nostr=nonsense", "not a valid event"),
        ("/lnurlp/{npub}/callback?amount=5000&nostr=" + "x" * 9_000, "too long"),
    ],
)
async def test_bad_requests_get_an_lnurl_error(world, site, path, reason):
    pubkey = await world.deployed()
    invoices = len(world.wallet.invoices)
    path = path.format(npub=npub(pubkey), stranger=npub(SecretKey.generate().pubkey))
    async with http() as get:
        answer = await get(site + path)

    assert "ERROR" == answer["status"]
    assert reason in answer["reason"]
    assert invoices == len(world.wallet.invoices), "nothing was minted"


@pytest.mark.parametrize(
    "relay",
    ["http://x", "ws://", "ws://h:99999", "ws://h:abc", "ws://[::1", "ws://a..b", "ws://user@h", "wss://.x", "ws://h/#f", "x" * 300],
)  # fmt: skip
async def test_relay_urls_that_are_none_are_refused_before_anything_is_minted(world, site, relay):
    pubkey = await world.deployed()
    tags = [("p", pubkey), ("relays", relay)]
    request = sign_event(SecretKey.generate(), 9734, "", tags, SystemClock().now())
    async with http() as get:
        answer = await get(
            f"{site}/lnurlp/{npub(pubkey)}/callback?{urlencode({'amount': 5000, 'nostr': request.json.decode()})}"
        )

    assert "relay URL" in answer["reason"]


@pytest.mark.parametrize(
    "attack",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(range(256)),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET " + b"x" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"",
    ],
)
async def test_one_broken_connection_ends_alone(world, site, attack):
    port = int(site.rpartition(":")[2])
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    with trio.move_on_after(1):
        try:
            await stream.send_all(attack)
            await stream.receive_some(1_000)
        except trio.BrokenResourceError:
            pass
    await stream.aclose()
    async with http() as get:
        assert "ERROR" == (await get(f"{site}/.well-known/lnurlp/x"))["status"]


async def test_one_address_may_ask_for_so_many_invoices_and_no_more(world):
    pubkey = await world.deployed()
    async with trio.open_nursery() as nursery, http() as get:
        port = free_port()
        await nursery.start(serve, world.ctx, "127.0.0.1", port, 5)
        url = f"http://127.0.0.1:{port}/lnurlp/{npub(pubkey)}/callback?amount=1000"
        answers = [await get(url) for _ in range(8)]
        world.clock.advance(60)
        later = await get(url)
        nursery.cancel_scope.cancel()

    assert [True] * 5 + [False] * 3 == ["pr" in answer for answer in answers]
    assert "rate-limited" in answers[-1]["reason"]
    assert "pr" in later
