"""A relay in a process of its own, as the server runs it, with a bot behind it that answers pings.

``python -m tests.attacks.relay_process FOLDER EVENTS [LIMIT=NUMBER …]``: prints a line when it is ready, and its own
resident memory whenever it is asked for by a line on standard input.
"""

import json
import os
import sys
from pathlib import Path

import trio

from bench.relay import fill, rss_mib
from bot.clock import SystemClock
from bot.relay.event_store import EventStore, Room
from bot.relay.event_tables import Budget
from bot.relay.gate import raise_descriptor_limit
from bot.relay.server import RelayServer
from nips import kinds
from nips.event import sign_event
from nips.keys import SecretKey
from nips.nip11 import RelayLimits

CLOCK = SystemClock()
BOT = SecretKey(b"\x01" * 32)


async def main(folder, events, **limits):
    raise_descriptor_limit()
    path = Path(folder) / "relay.sqlite"
    if events and not path.exists():
        store = EventStore(dict.fromkeys(Budget, Room(10**6, 1 << 30)), path)
        await fill(store, events)
        store.close()
    server = RelayServer(
        CLOCK,
        name="attacked",
        pubkey=BOT.pubkey,
        path=path,
        is_open=True,
        limits=RelayLimits(**limits),
    )
    await server.serve_for("instance", [BOT.pubkey])
    async with trio.open_nursery() as nursery:

        async def reply(event):
            tags = [("p", event.pubkey), ("e", event.id)]
            await server.publish(sign_event(BOT, kinds.RPC, "pong", tags, CLOCK.now()))

        def listener(event):
            if event.kind == kinds.RPC and BOT.pubkey in event.tag_values("p"):
                nursery.start_soon(reply, event)

        server.listen(listener)
        port = await nursery.start(server.serve, "127.0.0.1", 0)
        print(json.dumps({"port": port, "pid": os.getpid()}), flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            load = server.load()
            told = {
                "rss_mib": rss_mib(), "connections": load.connections, "values": load.live.values,
                "filters": load.live.filters, "queued_bytes": load.queued_bytes,
                "stored": sum(room.events for room in (await server.stored()).values()),
            }  # fmt: skip
            print(json.dumps(told), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    pairs = (argument.split("=") for argument in sys.argv[3:])
    trio.run(lambda: main(sys.argv[1], int(sys.argv[2]), **{name: int(n) for name, n in pairs}))
