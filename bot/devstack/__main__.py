"""``python -m bot.devstack demo [--once]`` or ``… ground`` (Docker and registry, for tests)."""

import argparse
import json
import signal
import sys

import trio

from bot.devstack.demo import demo
from bot.devstack.ground import ground
from bot.devstack.life import life


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bot.devstack", description="DEVELOPMENT ONLY")
    commands = parser.add_subparsers(required=True)
    showing = commands.add_parser("demo", help="the main job, live, as a transcript")
    showing.add_argument("--once", action="store_true", help="end after the last step")
    showing.add_argument("--life", action="store_true", help="power cut, restore, upgrade instead")
    showing.set_defaults(do=lambda options: life() if options.life else demo(once=options.once))
    grounding = commands.add_parser(
        "ground", help="Docker and registry until standard input closes"
    )
    grounding.set_defaults(do=lambda _: _ground())
    options = parser.parse_args()
    return trio.run(_interruptible, options)


async def _interruptible(options: argparse.Namespace) -> int:
    results: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_signal, nursery.cancel_scope)
        results.append(await options.do(options))
        nursery.cancel_scope.cancel()
    return results[0] if results else 0


async def _cancel_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            print("\nstopping, and cleaning up", flush=True)
            scope.cancel()


async def _ground() -> int:
    async with ground(lambda _: None) as on:
        place = on.place
        told = {
            "socket": str(place.socket),
            "cgroup_parent": place.cgroup_parent,
            "registry": on.registry_host,
            "engine_address": place.engine_address,
            "folder": str(place.folder),
        }
        print(json.dumps(told), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
