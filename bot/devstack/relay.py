"""DEVELOPMENT ONLY. A relay that stands somewhere on the internet and keeps everybody's events: ours, alone in a process."""

import argparse
from pathlib import Path

import trio

from bot.clock import SystemClock
from bot.relay.server import RelayServer
from nips.nip11 import RelayLimits


async def serve(url: str, state: Path) -> None:
    host, _, port = url.removeprefix("ws://").rpartition(":")
    server = RelayServer(
        SystemClock(),
        name="somewhere",
        pubkey=None,
        urls=[url],
        limits=RelayLimits(),
        path=state,
        is_open=True,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, host, int(port))
        print("ready", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="DEVELOPMENT ONLY relay")
    parser.add_argument("--url", required=True, help="ws://address:port, where it also listens")
    parser.add_argument("--state", type=Path, required=True, help="its file")
    options = parser.parse_args()
    trio.run(serve, options.url, options.state)


if __name__ == "__main__":
    main()
