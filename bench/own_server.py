"""Our side: the embedded relay, inbox, RPC door and dispatcher as the server runs them, answering ``ping``.

``python -m bench.own_server``: prints a line when it is ready, runs until it is killed. Replays are recorded on
disk before anything is answered, as always; the store, wallet and engine are simulators, since ping needs none.
"""

import json
import logging
import tempfile
from pathlib import Path
from types import SimpleNamespace

import structlog
import trio

from bot.adapters.seen_store import SeenStore
from bot.clock import SystemClock
from bot.relay.pool import RelayPool
from bot.relay.server import RelayServer
from bot.server import intake
from bot.server.inbox import Inbox, InboxPolicy
from bot.server.outlet import Outlet
from nips.keys import SecretKey
from nips.nip11 import RelayLimits
from tests.fakes import make_context


async def main() -> None:
    # The canonical line is made for every request, as in production, and thrown away here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    key, clock = SecretKey.generate(), SystemClock()
    limits = RelayLimits(events_per_minute=10**9, frames_per_minute=10**9)
    policy = InboxPolicy(
        caller_burst=10**9, caller_per_minute=10**9, total_burst=10**9, total_per_minute=10**9
    )
    with tempfile.TemporaryDirectory() as folder:
        server = RelayServer(clock, name="bench", pubkey=key.pubkey, limits=limits)
        await server.serve_for("instance", [key.pubkey])
        pool = RelayPool(clock)
        seen, refused = (
            SeenStore(Path(folder) / name, clock, most=10**9) for name in ("seen", "refused")
        )
        context = make_context(None, None, None, clock, key=key)
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
    trio.run(main)
