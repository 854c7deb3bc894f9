"""From a decoded request to a result or a refusal: the same way for every door.

Find the row of the table, check that the door may carry it, type the parameters, call the handler.
What a handler raises is a surprise: it is logged once, with its request id, and becomes an
``internal:`` error; the server goes on.
"""

import itertools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
import trio

from handlers import BY_NAME
from handlers.context import Caller, Context
from handlers.domain.lane import Room
from handlers.errors import Code, Refusal, not_found, restricted, unavailable
from handlers.params import parse_params, words_to_params
from handlers.routes import Route
from handlers.tables import StoreUnavailable

log = structlog.get_logger()
# Names a request in the log and in an ``internal:`` error; unique across restarts.
_STARTED, _NUMBER = secrets.token_hex(3), itertools.count(1)


@dataclass(frozen=True)
class Words:
    """Parameters of a text command, not typed yet."""

    positional: tuple[str, ...]
    named: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Request:
    """What a door hands over."""

    caller: Caller
    method: str
    params: Mapping[str, object] | Words
    door: str


@dataclass(frozen=True)
class Answer:
    """The row that answered, if any, and its outcome."""

    route: Route | None
    outcome: Any | Refusal


async def dispatch(ctx: Context, request: Request) -> Answer:
    """Carry out one request; never raises for anything that a request can cause."""
    route = BY_NAME.get(request.method)
    started = trio.current_time()
    request_id = f"{_STARTED}-{next(_NUMBER)}"
    outcome = await _outcome(ctx, route, request, request_id)
    log.info(
        "request",
        request_id=request_id,
        door=request.door,
        caller=request.caller.pubkey,
        method=route.method if route is not None else request.method[:32],
        outcome=str(outcome)[:200] if isinstance(outcome, Refusal) else "ok",
        ms=round((trio.current_time() - started) * 1_000, 1),
    )
    return Answer(route, outcome)


async def _outcome(
    ctx: Context, route: Route | None, request: Request, request_id: str
) -> Any | Refusal:
    if route is None:
        return not_found("there is no such method; call help")
    if request.caller.public and not route.public:
        return restricted(f"{route.method} is not for public notes: use the encrypted RPC")
    params = _typed(route, request.params)
    if isinstance(params, Refusal):
        return params
    try:
        return await _handle(ctx, route, request.caller, params)
    except StoreUnavailable as unavailable_now:
        log.error(
            "store unavailable", request_id=request_id, reason=repr(unavailable_now.__cause__)
        )
        return unavailable(str(unavailable_now))
    except Exception:
        log.exception("handler failed", request_id=request_id, method=route.method)
        return Refusal(Code.INTERNAL, f"request {request_id} failed here; it is logged")


async def _handle(ctx: Context, route: Route, caller: Caller, params: Any) -> Any | Refusal:
    if route.waits_for is None:
        return await route.handler(ctx, caller, params)
    with ctx.slow_lanes.enter(route.waits_for, caller.pubkey) as room:
        match room:
            case Room.CALLER_FULL:
                return Refusal(Code.RATE_LIMITED, room.value)
            case Room.LANE_FULL:
                return unavailable(room.value)
            case Room.FITS:
                return await route.handler(ctx, caller, params)


def _typed(route: Route, given: Mapping[str, object] | Words) -> Any | Refusal:
    raw = (
        words_to_params(route.params, given.positional, given.named)
        if isinstance(given, Words)
        else given
    )
    return raw if isinstance(raw, Refusal) else parse_params(route.params, raw)
