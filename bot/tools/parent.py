"""The command line of the host: ``parent run``, and while it runs ``status``, ``logs``, ``backups``, ``rotate``, ``shutdown``."""

import argparse
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from bot import logging
from bot.boot.supervisor import ProgramFailed
from bot.parent.run import BadParentConfig, load_parent
from bot.parent.run import run as run_parent
from bot.parent.store import RemoteFailed
from bot.terminal import is_watched, redraw, say, say_json, tell
from netstack.control import Refused, call

EXPECTED = (BadParentConfig, Refused, RemoteFailed, ProgramFailed, OSError, trio.TooSlowError)
CONFIG = Path("/etc/enclaved/parent.toml")
_BAR, _REDRAW_S = 30, 0.5


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """``parent`` with its actions."""
    parent = commands.add_parser("parent", help="the host's side of an enclave, and what it knows")
    actions = parent.add_subparsers(required=True, metavar="action")
    for name, text, do in (
        ("run", "serve the enclave: network, blobs, claims", _run),
        ("status", "how far the enclave is, and how old its newest checkpoint", _status),
        ("logs", "what the enclave told", _logs),
        ("backups", "what is kept for it", _backups),
        (
            "rotate",
            "tell the enclave to seal everything anew with another key",
            partial(_order, "rotate"),
        ),
        ("shutdown", "tell the enclave to save itself and end", partial(_order, "shutdown")),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("--config", type=Path, default=CONFIG, help=f"default: {CONFIG}")
        if name != "run":
            action.add_argument("--json", action="store_true")
        if name == "logs":
            action.add_argument("-n", type=int, default=100, metavar="LINES")
        action.set_defaults(do=do)


def _run(options: argparse.Namespace) -> int:
    logging.set_up("json", "info")
    config = load_parent(options.config)

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
            await run_parent(config)

    trio.run(serve)
    return 0


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


def _asked(options: argparse.Namespace, method: str, **params: object) -> Any:
    config = load_parent(options.config)

    async def ask() -> object:
        return await call(config.operator, method, **params)

    try:
        return trio.run(ask)
    except (FileNotFoundError, ConnectionRefusedError):
        raise Refused(f"no parent runs: nobody listens at {config.operator}") from None


def _status(options: argparse.Namespace) -> int:
    status = _asked(options, "status")
    if options.json:
        say_json(status)
    else:
        say(*status_lines(status))
        if is_watched():
            _watch_restore(options, status)
    return 0


def _watch_restore(options: argparse.Namespace, status: dict[str, Any]) -> None:
    """While one goes on, for whoever looks on."""
    began_s, began_bytes = time.monotonic(), _restoring(status)
    while (done := _restoring(status)) is not None:
        whole = status["report"]["restore"]["all_bytes"]
        rate = (done - (began_bytes or 0)) / max(0.1, time.monotonic() - began_s)
        redraw(bar(done, whole, rate))
        time.sleep(_REDRAW_S)
        status = _asked(options, "status")
    if began_bytes is not None:
        redraw("")


def _restoring(status: dict[str, Any]) -> int | None:
    """How many bytes are back; None when no restore goes on."""
    report = status["report"]
    match report.get("restore"):
        case {"done_bytes": int(done), "all_bytes": int(whole)} if report.get("step") == "restore":
            return done if done < whole else None
        case _:
            return None


def bar(done: int, whole: int, rate: float) -> str:
    """``[#####.....]  50 %, 1.0 of 2.0 MiB, 0.5 MiB/s, 2 s left``."""
    filled = _BAR * done // whole
    left = f"{(whole - done) / rate:.0f} s left" if rate > 0 else "waiting"
    told = f"{done / 2**20:.1f} of {whole / 2**20:.1f} MiB, {rate / 2**20:.1f} MiB/s, {left}"
    return f"[{'#' * filled}{'.' * (_BAR - filled)}] {100 * done // whole:3} %, {told}"


def status_lines(status: dict[str, Any]) -> list[str]:
    """For a person."""
    report, kept = status["report"], status["backups"]
    rows = [
        ("enclave", status["enclave"]),
        ("step", _step(report)),
        ("took", _took(report.get("took_s"))),
        ("restore", _progress(report.get("restore"))),
        ("checkpoint", _age(kept["newest_s_ago"])),
        ("blobs", f"{kept['blobs']}, {kept['bytes'] / 2**20:.1f} MiB"),
        ("remote", _remote(kept)),
        ("reported", _age(status["reported_s_ago"])),
        ("ports", ", ".join(map(str, report.get("ports") or [])) or "-"),
        (
            "restarts",
            ", ".join(f"{n} {c}" for n, c in (report.get("restarts") or {}).items()) or "-",
        ),
        ("last error", report.get("halted") or report.get("error") or "-"),
        ("last log", status["last_log"] or "-"),
    ]
    return [f"{name:<12} {value}" for name, value in rows]


def _remote(kept: dict[str, Any]) -> str:
    if kept["remote_lag_s"] is None:
        return "none"
    told = f"{kept['remote_lag_s']} s behind"
    return told if kept["remote_problem"] is None else f"{told}: {kept['remote_problem']}"


def _step(report: dict[str, Any]) -> str:
    step = report.get("step") or "-"
    return f"{step}, and halted there" if report.get("halted") else step


def _took(steps: object) -> str:
    """The slowest first."""
    if not isinstance(steps, dict):
        return "-"
    slow = sorted(steps.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in slow) or "-"


def _progress(restore: object) -> str:
    match restore:
        case {"done_bytes": int(done), "all_bytes": int(whole)} if whole:
            return f"{done / 2**20:.1f} of {whole / 2**20:.1f} MiB, {100 * done // whole} %"
        case _:
            return "-"


def _age(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.0f} s ago"


def _logs(options: argparse.Namespace) -> int:
    lines = _asked(options, "logs", lines=options.n)
    if options.json:
        say_json(lines)
    else:
        say(*lines)
    return 0


def _backups(options: argparse.Namespace) -> int:
    kept = _asked(options, "backups")
    if options.json:
        say_json(kept)
    else:
        say(*(f"{name:<14} {value}" for name, value in kept.items()))
    return 0


def _order(event: str, options: argparse.Namespace) -> int:
    tell(str(_asked(options, event)))
    return 0
