"""``enclaved boot``: the inside of an enclave, from power-on on. `enclave.sh` keeps it running."""

import argparse
import signal
from pathlib import Path

import trio

from bot import logging
from bot.boot.machine.boot import Boot
from bot.config import load_machine

CONFIG = Path("/etc/enclaved/enclaved.toml")


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    boot = commands.add_parser(
        "boot", help="start everything inside an enclave, and keep it running"
    )
    boot.add_argument("--config", type=Path, default=CONFIG, help=f"default: {CONFIG}")
    boot.set_defaults(do=_boot)


def _boot(options: argparse.Namespace) -> int:
    """0 when it was told to end; that is the end of the enclave, too."""
    config = load_machine(options.config)
    logging.set_up("json" if config.server.log == "json" else "console", config.server.log_level)

    async def boot() -> None:
        async with trio.open_nursery() as nursery:
            booted = Boot(options.config, config)
            nursery.start_soon(_end_on_signal, booted)
            await booted.run()
            nursery.cancel_scope.cancel()

    trio.run(boot)
    return 0


async def _end_on_signal(booted: Boot) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            booted.end()
