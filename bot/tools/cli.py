"""The command line: ``run`` a server, ``call`` one, ``verify`` one, sign a ``release``, make a ``key``."""

import argparse
import json
import signal
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import trio

from bot import logging
from bot.adapters.docker_engine import EngineUnusable
from bot.adapters.nsm import NsmUnusable
from bot.boot.identity import read_secret_text
from bot.boot.unlock import EXIT_OVERTAKEN, Halted, Overtaken
from bot.config import ConfigError, load
from bot.server import app
from bot.terminal import printable, say, say_json, tell
from bot.tools import boot, parent, payments
from bot.tools import commands as trust_commands
from bot.tools.client import CallRefused, NoAnswer, open_client
from bot.tools.maintain import CannotRelease
from bot.tools.signer import SignerProblem
from nips.errors import BadInput, BadKey
from nips.keys import SecretKey
from nips.nip19 import npub, nsec, pubkey_from_npub_untrusted
from nips.tee.nsm import NsmRefused

# Inside of an enclave there is nothing to build, and nothing to sign with.
images = import_module("bot.tools.images") if find_spec("bot.tools.images") else None
# What a person can do something about: one line, no traceback.
EXPECTED = (
    ConfigError,
    EngineUnusable,
    NsmUnusable,
    NsmRefused,
    Halted,
    CallRefused,
    NoAnswer,
    CannotRelease,
    SignerProblem,
    BadInput,
    *parent.EXPECTED,
    *(images.EXPECTED if images is not None else ()),
)


def main(arguments: list[str] | None = None) -> int:
    """Parse, do, and turn expected failures into one line and an exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.do(options)
        return code
    except EXPECTED as error:
        return _fail(error)
    except BaseExceptionGroup as group:
        # What fails inside a nursery arrives wrapped, as often as there are nurseries around it.
        expected, others = group.split(EXPECTED)
        if expected is None or others is not None:
            raise
        return _fail(_innermost(expected))


def _fail(error: BaseException) -> int:
    tell(f"error: {error}")
    return EXIT_OVERTAKEN if isinstance(error, Overtaken) else 1


def _innermost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _innermost(first) if isinstance(first, BaseExceptionGroup) else first


class _Parser(argparse.ArgumentParser):
    """argparse repeats mistaken arguments as they are, and people paste what strangers wrote."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="enclaved", description="Containers for sats, over Nostr."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    run = commands.add_parser("run", help="run the server")
    run.add_argument("--config", type=Path, required=True, help="a TOML file")
    run.add_argument(
        "--forget-state",
        action="store_true",
        help="give up what key escrow holds for us, when the backup of it is lost for good",
    )
    run.set_defaults(do=_run)
    call = commands.add_parser("call", help="call a method of an instance")
    call.add_argument("--relay", required=True, action="append", help="ws:// or wss:// URL")
    call.add_argument("--to", required=True, help="the instance's npub")
    call.add_argument(
        "--key", type=Path, required=True, help="a file with your nsec, see `enclaved key`"
    )
    call.add_argument("method")
    call.add_argument("params", nargs="*", help="name=value; a value may be JSON")
    call.set_defaults(do=_call)
    trust_commands.add_commands(commands)
    payments.add_command(commands)
    boot.add_command(commands)
    parent.add_command(commands)
    if images is not None:
        images.add_command(commands)
    key = commands.add_parser("key", help="make a key file, or show the npub of one")
    key.add_argument("file", type=Path)
    key.set_defaults(do=_key)
    return parser


def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    logging.set_up("json" if config.server.log == "json" else "console", config.server.log_level)

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            starting = nursery.cancel_scope
            stop: list[Callable[[], None]] = [starting.cancel]
            nursery.start_soon(_stop_on_signal, stop)
            async with app.start(config, forget_state=options.forget_state) as built:
                with trio.CancelScope() as running:
                    # From now on a signal ends the service, and the last checkpoint still follows.
                    stop[0] = running.cancel
                    await app.run(built)
            starting.cancel()

    trio.run(serve)
    return 0


async def _stop_on_signal(stop: list[Callable[[], None]]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop[0]()


def _call(options: argparse.Namespace) -> int:
    key = SecretKey.parse(read_secret_text(options.key))
    service = pubkey_from_npub_untrusted(options.to)
    params = dict(_param(text) for text in options.params)

    async def call() -> object:
        async with open_client(key, options.relay) as client:
            return await client.call(service, options.method, **params)

    say_json(trio.run(call))
    return 0


def _param(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise BadKey(f"write parameters as name=value, not {text!r}")
    with suppress(ValueError):
        return name, json.loads(value)
    return name, value


def _key(options: argparse.Namespace) -> int:
    if not options.file.exists():
        options.file.touch(mode=0o600)
        options.file.write_text(nsec(SecretKey.generate().reveal_secret()) + "\n")
    say(npub(SecretKey.parse(read_secret_text(options.file)).pubkey))
    return 0
