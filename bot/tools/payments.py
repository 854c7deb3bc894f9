"""``enclaved payments``: withdrawals of which the wallet does not say what became, and the operator's word on them.

He looks into the wallet with his own eyes: what was paid has a preimage, and what failed for certain has somebody who
saw that. It works on the database of a server that runs, or that does not.
"""

import argparse
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import trio

from bot.adapters.store.sqlite import SqliteStore
from bot.clock import SystemClock
from bot.config import Config, ConfigError, load
from bot.terminal import say
from handlers.context import Facts
from handlers.domain.pricing import sat_floor
from handlers.duties.outgoing import resolve
from handlers.ports import PayResult, PayStatus
from handlers.records import Outgoing
from nips.bolt11 import preimage_matches
from nips.errors import BadInput

T = TypeVar("T")


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """``payments list``, ``payments settled``, ``payments failed``."""
    parser = commands.add_parser("payments", help="withdrawals whose end the wallet does not tell")
    parser.add_argument("--config", type=Path, required=True, help="the server's TOML file")
    what = parser.add_subparsers(required=True, metavar="what")
    listed = what.add_parser("list", help="those that are unknown")
    listed.set_defaults(do=_list)
    settled = what.add_parser("settled", help="the wallet shows that it was paid")
    settled.add_argument("payment_id")
    settled.add_argument("--preimage", required=True, help="as the wallet shows it, 64 hex digits")
    settled.add_argument("--fees-msat", type=int, default=0, help="what it cost")
    settled.set_defaults(do=_settled)
    failed = what.add_parser("failed", help="the wallet shows that it can never be paid any more")
    failed.add_argument("payment_id")
    failed.add_argument("--because", required=True, help="what you saw, for its owner")
    failed.set_defaults(do=_failed)


def _list(options: argparse.Namespace) -> int:
    rows = _with_store(options, lambda store, _: store.read(lambda tx: tx.outgoing.list_unknown()))
    say(*(map(_line, rows) if rows else ["no payment is unknown"]))
    return 0


def _line(outgoing: Outgoing) -> str:
    made = datetime.fromtimestamp(outgoing.created_at, UTC).isoformat(" ", "minutes")
    return (
        f"{outgoing.payment_id}  {made}  {sat_floor(outgoing.amount_msat)} sat  "
        f"hash {outgoing.payment_hash}  from {outgoing.wallet}"
    )


def _settled(options: argparse.Namespace) -> int:
    if not 0 <= options.fees_msat <= 10**11:
        raise BadInput("--fees-msat must be what the payment cost, in msat")
    result = PayResult(PayStatus.SETTLED, options.fees_msat, options.preimage)
    return _resolve(options, result)


def _failed(options: argparse.Namespace) -> int:
    return _resolve(options, PayResult(PayStatus.FAILED, reason=options.because[:200]))


def _resolve(options: argparse.Namespace, result: PayResult) -> int:
    async def work(store: SqliteStore, config: Config) -> str:
        found = await store.read(lambda tx: tx.outgoing.find(options.payment_id))
        if found is None:
            raise BadInput("there is no such payment; see `enclaved payments list`")
        if result.preimage is not None and not preimage_matches(
            result.preimage, found.payment_hash
        ):
            raise BadInput("that preimage is not of this payment: its hash is another")
        clock = SystemClock()
        facts = Facts(clock.now(), clock.boot_ms(), config.policy)
        return await store.write(resolve, facts, options.payment_id, result)

    say(_with_store(options, work))
    return 0


def _with_store(
    options: argparse.Namespace, work: Callable[[SqliteStore, Config], Awaitable[T]]
) -> T:
    config = load(options.config)
    path = config.server.state_dir / "enclaved.sqlite"
    if not path.exists():
        raise ConfigError(f"there is no database at {path}")

    async def run() -> T:
        store = SqliteStore(path)
        try:
            return await work(store, config)
        finally:
            store.close()

    return trio.run(run)
