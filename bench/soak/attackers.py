"""Dishonest strangers: ``python -m bench.soak.attackers JSON``, until standard input ends.

They know what every stranger knows: the relay's and the HTTP port, the instance's pubkey, an image, and what they
see on the relay. One or two attacks at a time, in an order from the seed; after each a line of JSON with what it did.
"""

import json
import logging
import random
import secrets
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from urllib.parse import urlencode

import structlog
import trio

from bot.clock import SystemClock
from bot.relay.websocket import WebsocketGone, connect
from bot.tools.client import CallRefused, NoAnswer, open_client
from nips import kinds, nip01
from nips.errors import BadInput
from nips.event import VerifiedEvent, sign_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip19 import npub
from nips.rpc import RpcRequest, build_request
from tests.attacks import attackers as on_the_relay
from tests.attacks.wire import SHAKE, drain, frame, websocket
from tests.attacks.wire import connect as open_tcp

CLOCK = SystemClock()
AT_MOST_S, AT_LEAST_S = 9, 4
_GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, WebsocketGone, NoAnswer)


@dataclass
class Target:
    """What is attacked, and what was seen of it. ``containers`` and ``requests`` come from the relay."""

    relay_port: int
    http_port: int
    instance: str
    image: str
    slow_image: str
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    containers: list[str] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)

    @property
    def relay_url(self) -> str:
        return f"ws://127.0.0.1:{self.relay_port}"

    def source(self) -> str:
        """An address of this machine that is nobody's own."""
        return f"127.0.{self.rng.randint(1, 250)}.{self.rng.randint(1, 250)}"

    def request(self, method: str, params: dict, *, ahead_s: int = 0) -> VerifiedEvent:
        """From a key that nobody knows."""
        rpc = RpcRequest(secrets.token_hex(4), method, params)
        return build_request(
            SecretKey.generate(), kinds.RPC, self.instance, rpc, CLOCK.now() + ahead_s
        )


async def listen(target: Target) -> None:
    """Everybody can: containers by their announcements, requests to replay as they pass."""
    wanted = [
        Filter(kinds=frozenset({kinds.CONTAINER}), limit=20),
        Filter(kinds=frozenset({kinds.RPC}), tags={"p": frozenset({target.instance})}, limit=0),
    ]
    async with (
        connect(target.relay_url, max_message_bytes=1 << 20, max_queued_bytes=1 << 20) as ws,
        trio.open_nursery() as nursery,
        aclosing(ws.messages()) as frames,
    ):
        nursery.start_soon(ws.run_writer)
        ws.send(nip01.encode_req("all", wanted))
        async for text in frames:
            with suppress(BadInput):
                _note(target, nip01.decode_relay_untrusted(text))
        nursery.cancel_scope.cancel()


def _note(target: Target, message: nip01.RelayMessage) -> None:
    if not isinstance(message, nip01.EventMessage):
        return
    event = message.event
    if event.kind == kinds.RPC:
        target.requests = [*target.requests[-500:], nip01.encode_publish(event)]
    elif event.pubkey not in target.containers:
        target.containers = [*target.containers[-50:], event.pubkey]


async def again(work: Callable[[], Awaitable[None]]) -> None:
    """Whatever ends it: the server is killed every minute, and cuts attackers off."""
    while True:
        try:
            await work()
        except* _GONE:
            pass
        await trio.sleep(0.1)


async def flood(
    target: Target, name: str, make: Callable[[], bytes | None], pause_s: float = 0
) -> None:
    """Frames as fast as they go, through one connection; answers are read and thrown away."""
    async with (
        websocket(target.relay_port, target.source()) as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(drain, stream)
        while True:
            text = make()
            if text is not None:
                await stream.send_all(frame(text))
                target.counts[name] += 1
            await trio.sleep(pause_s)


async def several(work: Callable[[], Awaitable[None]], count: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(again, work)


# -- events and requests ----------------------------------------------------------------------------


async def events_for_us(target: Target) -> None:
    """Notes that mention us and hold no command, or one, from a new key each."""

    def note() -> bytes:
        text = target.rng.choice(["hello", f"nostr:{npub(target.instance)} ping"])
        event = sign_event(
            SecretKey.generate(), kinds.NOTE, text, [("p", target.instance)], CLOCK.now()
        )
        return nip01.encode_publish(event)

    await several(lambda: flood(target, "notes to us", note), 2)


async def events_for_others(target: Target) -> None:
    key = SecretKey.generate()

    def note() -> bytes:
        kind = target.rng.choice([1, 7, 30_000, 13_793])
        text, tags = "x" * target.rng.choice([10, 5_000]), [("d", secrets.token_hex(4))]
        return nip01.encode_publish(sign_event(key, kind, text, tags, CLOCK.now()))

    await several(lambda: flood(target, "notes to others", note), 2)


async def pings_of_many(target: Target) -> None:
    """Valid requests without pause, from a new key each."""
    await several(
        lambda: flood(
            target, "rpc pings", lambda: nip01.encode_publish(target.request("ping", {}))
        ),
        2,
    )


async def replays(target: Target) -> None:
    """What others asked, word for word, and one's own once more."""
    await several(
        lambda: flood(
            target,
            "replays",
            lambda: target.rng.choice(target.requests) if target.requests else None,
            0.001,
        ),
        2,
    )


async def misdated(target: Target) -> None:
    def request() -> bytes:
        ahead_s = target.rng.choice([-90_000, -4_000, -300, 300, 4_000, 90_000])
        return nip01.encode_publish(target.request("ping", {}, ahead_s=ahead_s))

    await several(lambda: flood(target, "misdated", request, 0.002), 1)


async def bad_requests(target: Target) -> None:
    """Methods, parameters and ciphertexts that mean nothing."""
    bodies: list[tuple[str, dict]] = [
        ("deploy", {"docker": "../../etc", "units": -1}),
        ("deploy", {"docker": target.image, "units": "fifty", "env": {"A" * 3_000: "B"}}),
        ("withdraw", {"pubkey": target.instance, "invoice": "lnbc1" + "q" * 500}),
        ("no such method", {"a": [[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]}),
        ("logs", {"pubkey": "f" * 64, "lines": 10**9}),
        ("stop", {"pubkey": "f" * 64, "force": True}),
    ]

    def request() -> bytes:
        if target.rng.random() < 0.3:
            event = sign_event(
                SecretKey.generate(), kinds.RPC, secrets.token_urlsafe(200),
                [("p", target.instance)], CLOCK.now(),
            )  # fmt: skip
            return nip01.encode_publish(event)
        return nip01.encode_publish(target.request(*target.rng.choice(bodies)))

    await several(lambda: flood(target, "bad requests", request, 0.002), 1)


async def slow_quotes(target: Target) -> None:
    """Quotes at a registry that drips."""

    def request() -> bytes:
        return nip01.encode_publish(
            target.request("quote", {"docker": target.slow_image, "units": 1})
        )

    await several(lambda: flood(target, "slow quotes", request, 0.02), 1)


async def unpaid_deploys(target: Target) -> None:
    """Deploy, never pay, stop or leave it; from new keys."""

    async def one() -> None:
        async with open_client(SecretKey.generate(), [target.relay_url]) as me:
            for _ in range(4):
                with suppress(CallRefused), trio.move_on_after(5):
                    result = await me.call(target.instance, "deploy", docker=target.image, units=1)
                    target.counts["unpaid deploys"] += 1
                    await me.call(target.instance, "topup", pubkey=result["pubkey"], amount_sat=5)
                    if target.rng.random() < 0.6:
                        await me.call(target.instance, "stop", pubkey=result["pubkey"], force=True)

    await several(one, 4)


# -- connections ------------------------------------------------------------------------------------


async def idle_websockets(target: Target) -> None:
    """All that some addresses are given, and more; none says a word."""
    await _hold(target, "idle websockets", target.relay_port, SHAKE, 80)


async def half_http_requests(target: Target) -> None:
    half = b"GET /.well-known/lnurlp/x HTTP/1.1\r\nHost: a\r\nX: "
    await _hold(target, "half http requests", target.http_port, half, 60)


async def _hold(target: Target, name: str, port: int, opening: bytes, each: int) -> None:
    """From six addresses so many connections each, kept open after their first words."""
    async with AsyncExitStack() as stack:
        for _ in range(6):
            source = target.source()
            for _ in range(each):
                stream = await open_tcp(port, source)
                stack.push_async_callback(trio.aclose_forcefully, stream)
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(opening)
                    target.counts[name] += 1
        await trio.sleep_forever()


async def http_garbage(target: Target) -> None:
    texts = [
        b"\x16\x03\x01" + secrets.token_bytes(400),
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: !\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + secrets.token_bytes(100),
        b"GET /attest?nonce=zz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /lnurlp/npub1%00/callback?amount=-1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 4_000 + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    ]

    async def one() -> None:
        stream = await open_tcp(target.http_port, target.source())
        try:
            await stream.send_all(target.rng.choice(texts))
            target.counts["http garbage"] += 1
            with trio.move_on_after(0.2):
                await stream.receive_some(1_000)
        finally:
            await trio.aclose_forcefully(stream)

    await several(one, 4)


async def lnurl_callbacks(target: Target) -> None:
    """Invoices for zaps that nobody pays, for every container that was announced."""

    async def one() -> None:
        if not target.containers:
            return
        pubkey, amount = target.rng.choice(target.containers), target.rng.randint(1_000, 90_000)
        tags = [("p", pubkey), ("amount", str(amount)), ("relays", "ws://127.0.0.1:9")]
        zap = sign_event(SecretKey.generate(), kinds.ZAP_REQUEST, "", tags, CLOCK.now())
        query = urlencode({"amount": amount, "nostr": zap.json.decode()})
        head = f"GET /lnurlp/{npub(pubkey)}/callback?{query} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        stream = await open_tcp(target.http_port, target.source())
        try:
            await stream.send_all(head.encode())
            with trio.move_on_after(5):
                await drain(stream)
            target.counts["lnurl callbacks"] += 1
        finally:
            await trio.aclose_forcefully(stream)

    await several(one, 6)


def _relay(name: str) -> Callable[[Target], Awaitable[None]]:
    async def attack(target: Target) -> None:
        target.counts[name] += 1
        await on_the_relay.again(on_the_relay.ALL[name], target.relay_port, target.source())

    return attack


ATTACKS: dict[str, Callable[[Target], Awaitable[None]]] = {
    **{work.__name__: work for work in (
        events_for_us, events_for_others, pings_of_many, replays, misdated, bad_requests, slow_quotes,
        unpaid_deploys, idle_websockets, half_http_requests, http_garbage, lnurl_callbacks,
    )},
    **{name: _relay(name) for name in on_the_relay.ALL},
}  # fmt: skip


async def attack(target: Target, name: str) -> None:
    """One attack, for some seconds."""
    with trio.move_on_after(target.rng.uniform(AT_LEAST_S, AT_MOST_S)):
        await again(lambda: ATTACKS[name](target))


async def attack_all(target: Target) -> None:
    """Round after round, each attack once a round, sometimes two at a time."""
    while True:
        names = target.rng.sample(list(ATTACKS), len(ATTACKS))
        while names:
            now = [names.pop() for _ in range(min(len(names), target.rng.choice([1, 1, 2])))]
            target.counts.clear()
            async with trio.open_nursery() as nursery:
                for name in now:
                    nursery.start_soon(attack, target, name)
            print(json.dumps({"attacks": now, "counts": target.counts}), flush=True)
            await trio.sleep(target.rng.uniform(0.5, 2))


async def run(told: dict) -> None:
    target = Target(**told | {"rng": random.Random(told["rng"])})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again, lambda: listen(target))
        nursery.start_soon(attack_all, target)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    # Standard output is for what was done.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    trio.run(run, json.loads(sys.argv[1]))
