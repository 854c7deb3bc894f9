"""Our side: the embedded relay, inbox, RPC door and dispatcher as the server runs them, answering ``ping``.

``python -m bench.own_server [folder]``: prints a line when it is ready, runs until it is killed. Replays are recorded on
disk before anything is answered, as always; wallet and engine are simulators, since ping needs none. In a ``folder`` that
`fill` made, the relay holds 100,000 events and the store 20,000 containers.
"""

import json
import logging
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import structlog
import trio

from bench import relay
from bench.relay import EVENTS
from bot.adapters.seen_store import SeenStore
from bot.adapters.store.sqlite import SqliteStore
from bot.clock import SystemClock
from bot.relay.event_store import EventStore, Room
from bot.relay.event_tables import Budget
from bot.relay.pool import RelayPool
from bot.relay.server import RelayServer
from bot.server import intake
from bot.server.inbox import Inbox, InboxPolicy
from bot.server.outlet import Outlet
from handlers.domain.lifecycle import State
from handlers.domain.pricing import Tariff
from handlers.records import Container
from handlers.tables import Tx
from nips.keys import SecretKey
from nips.nip11 import RelayLimits
from tests.fakes import make_context

ROWS = 20_000


async def fill(folder: Path) -> None:
    """A relay and a store with a past."""
    events = EventStore(dict.fromkeys(Budget, Room(EVENTS, 1 << 30)), folder / "relay.sqlite")
    await relay.fill(events, EVENTS)
    events.close()
    with closing(SqliteStore(folder / "enclaved.sqlite")) as store:
        await store.write(add_rows)


def add_rows(tx: Tx) -> None:
    image = "example.com/app@sha256:" + "ab" * 32
    for number in range(ROWS):
        pubkey = f"{number:064x}"
        row = Container(
            pubkey, b"\x01" * 32, "a" * 64, "app", image, image, 1, Tariff(), State.SHELVED, 0, 0
        )  # fmt: skip
        tx.containers.add(row)


async def main(filled: Path | None) -> None:
    # The canonical line is made for every request, as in production, and thrown away here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    key, clock = SecretKey.generate(), SystemClock()
    limits = RelayLimits(events_per_minute=10**9, frames_per_minute=10**9)
    policy = InboxPolicy(
        caller_burst=10**9, caller_per_minute=10**9, total_burst=10**9, total_per_minute=10**9
    )
    with tempfile.TemporaryDirectory() as folder:
        path = filled / "relay.sqlite" if filled is not None else None
        server = RelayServer(clock, name="bench", pubkey=key.pubkey, limits=limits, path=path)
        store = SqliteStore((filled or Path(folder)) / "enclaved.sqlite")
        await server.serve_for("instance", [key.pubkey])
        pool = RelayPool(clock)
        seen, refused = (
            SeenStore(Path(folder) / name, clock, most=10**9) for name in ("seen", "refused")
        )
        context = make_context(store, None, None, clock, key=key)
        built = SimpleNamespace(
            ctx=context, relay=server, pool=pool, config=SimpleNamespace(inbox=policy),
            inbox=Inbox(key.pubkey, seen, refused, policy), outlet=Outlet(pool, server, ()),
        )  # fmt: skip
        send, receive = trio.open_memory_channel(4_096)
        server.listen(intake.feed(built, send))
        async with trio.open_nursery() as nursery:
            port = await nursery.start(server.serve, "127.0.0.1", 0)
            nursery.start_soon(intake.run_requests, built, receive)
            print(json.dumps({"url": f"ws://127.0.0.1:{port}", "pubkey": key.pubkey}), flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]) if len(sys.argv) > 1 else None)
