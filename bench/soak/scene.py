"""The world of one soak: the real stack, images of all sorts, a payer's wallet, and what everybody counts."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from bench.soak.plan import RELAY_LIMITS, Plan
from bot.adapters.nwc_client import known
from bot.adapters.nwc_wallet import NwcWallet
from bot.clock import SystemClock
from bot.devstack.engine import free_port
from bot.devstack.sample import SERVE, build_image
from bot.devstack.stack import Stack, stack
from bot.devstack.wallet import PATIENCE
from bot.tools.client import CallRefused, Client, NoAnswer
from handlers.ports import PayStatus
from nips.nip47 import parse_uri

ANSWER_S, PATIENCE_S = 8, 60
# What people deploy: mostly what works, and all that does not.
COMMANDS = {
    "behaves": SERVE,
    "writes": f"( while :; do echo noise; sleep 0.1; done ) & {SERVE}",
    "stubborn": "trap '' TERM; while :; do sleep 1; done",
    "crashes": "echo up; sleep 4; exit 1",
    "ends at once": "exit 3",
}


@dataclass
class Tally:
    """What happened, by name; and what must not happen, in words."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def violated(self, text: str) -> None:
        self.violations.append(text)
        print(f"VIOLATED: {text}", flush=True)


@dataclass
class Outages:
    """When the server was killed, and when it answered again (trio time)."""

    spans: list[list[float]] = field(default_factory=list)

    def begin(self) -> None:
        if not self.is_open:
            self.spans.append([trio.current_time(), float("inf")])

    def end(self) -> None:
        if self.is_open:
            self.spans[-1][1] = trio.current_time()

    @property
    def is_open(self) -> bool:
        return bool(self.spans) and self.spans[-1][1] == float("inf")

    def touches(self, began: float, ended: float) -> bool:
        return any(began <= end and start <= ended for start, end in self.spans)


@dataclass
class Scene:
    """Everything that an actor needs. ``images``: references by kind. ``zaps``: paid ones, as bolt11."""

    plan: Plan
    on: Stack
    wallet: NwcWallet
    images: dict[str, str]
    drip_port: int
    tally: Tally
    outages: Outages = field(default_factory=Outages)
    zaps: set[str] = field(default_factory=set)

    async def call(self, me: Client, method: str, **params: object) -> dict:
        """As a client does: again, when nobody answered. Raises `CallRefused`, or `NoAnswer` in the end."""
        with trio.move_on_after(PATIENCE_S):
            while True:
                began = trio.current_time()
                try:
                    with trio.move_on_after(ANSWER_S):
                        result = await me.call(self.on.instance, method, **params)
                        self.tally.counts["calls answered"] += 1
                        return result
                except NoAnswer:
                    pass
                except CallRefused as refused:
                    self._count_refusal(method, str(refused))
                    raise
                if not self.outages.touches(began, trio.current_time()):
                    self.tally.counts["calls unanswered while up"] += 1
                await trio.sleep(0.3)
        raise NoAnswer(method)

    def _count_refusal(self, method: str, text: str) -> None:
        word = text.partition(":")[0]
        self.tally.counts[f"refused {word}"] += 1
        if word == "internal":
            self.tally.violated(f"{method} is answered with {text}")

    async def pay(self, bolt11: str, payment_hash: str) -> bool:
        """Whether it went through. The wallet is not heard while the relay is down: its own book tells."""
        with trio.move_on_after(PATIENCE_S):
            while True:
                paid = await self.wallet.pay(bolt11, 0, None)
                if paid.status is PayStatus.UNKNOWN:
                    paid = await self.wallet.look_up_payment(payment_hash, None, 0)
                if paid.status in (PayStatus.SETTLED, PayStatus.FAILED):
                    self.tally.counts[f"payments {paid.status.value}"] += 1
                    return paid.status is PayStatus.SETTLED
                await trio.sleep(0.5)
        self.tally.counts["payments given up"] += 1
        return False


@asynccontextmanager
async def scene(plan: Plan) -> AsyncIterator[Scene]:
    """Everything is up, nobody acts yet."""
    drip_port = free_port()
    async with (
        stack(
            partial(print, flush=True),
            plan.policy(),
            relay_limits=RELAY_LIMITS,
            registries=(f"127.0.0.1:{drip_port}",),
        ) as on,
        trio.open_nursery() as nursery,
    ):
        images = {}
        for name, command in COMMANDS.items():
            image = build_image(command, volumes=("/data",) if name == "writes" else ())
            images[name] = await on.ground.push(f"soak/{name.replace(' ', '-')}", "1", image)
        wallet = NwcWallet(
            known(parse_uri(on.payer_uri())), SystemClock(), answer_s=5, relay_policy=PATIENCE
        )
        nursery.start_soon(wallet.run)
        await wallet.wait_ready()
        await nursery.start(serve_drips, drip_port)
        yield Scene(plan, on, wallet, images, drip_port, Tally())
        nursery.cancel_scope.cancel()


async def serve_drips(port: int, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
    """A registry, and a relay, that answer a byte a second, for ever."""

    async def drip(stream: trio.SocketStream) -> None:
        try:
            for byte in (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Slow: " + b"a" * 3_600
            ):
                await stream.send_all(bytes([byte]))
                await trio.sleep(1)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    task_status.started()
    await trio.serve_listeners(drip, listeners)
