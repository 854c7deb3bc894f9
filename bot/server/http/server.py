"""Lightning addresses (LUD-06, LUD-16, NIP-57) and attestation over HTTP, on hypercorn and Starlette.

LNURL answers errors with status 200 and a reason; anybody may call, from any page (CORS).
"""

from typing import Any

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bot.relay.gate import Gate, network_of, network_of_peer, places
from bot.server.rates import Rate, Rates
from handlers.commands.attest import AttestParams, attestation_for
from handlers.context import Context
from handlers.errors import Code, Refusal, invalid
from handlers.params import parse_params
from handlers.zap import pay_callback, pay_request
from nips.errors import BadKey
from nips.lnurl import error_answer
from nips.nip19 import pubkey_from_npub_untrusted

log = structlog.get_logger()
MAX_ATTESTING = 4
CALLBACKS_IN_ALL = Rate(300, 600)
MAX_CONNECTIONS, MAX_PER_ADDRESS, DESCRIPTORS_SHARE = 512, 32, 0.25
_STATUS = {
    Code.INVALID: 400,
    Code.RATE_LIMITED: 429,
    Code.UNAVAILABLE: 503,
    Code.INTERNAL: 500,
}
_HEADERS = {"Access-Control-Allow-Origin": "*", "Cache-Control": "no-store"}


def build_app(ctx: Context, callbacks_per_minute: int = 60) -> Starlette:
    """The two LNURL endpoints of every container, and the instance's attestation."""
    # The module answers one at a time; strangers must not keep our own announcements from it.
    attesting = trio.CapacityLimiter(MAX_ATTESTING)

    async def first(request: Request) -> JSONResponse:
        return await _answer(request, lambda pubkey: pay_request(ctx, pubkey))

    # Anybody may have invoices made, and each costs a question to the wallet.
    callbacks = Rates(Rate(callbacks_per_minute, callbacks_per_minute), CALLBACKS_IN_ALL)

    async def callback(request: Request) -> JSONResponse:
        address = network_of(request.client.host) if request.client is not None else ""
        if not callbacks.allow(address, ctx.clock.now()):
            return _json(
                Refusal(Code.RATE_LIMITED, "too many invoices were asked for; wait a minute")
            )
        amount = request.query_params.get("amount", "")
        if not (amount.isascii() and amount.isdecimal()) or len(amount) > 15:
            return _json(invalid("amount must be a number of msat"))
        zap_request = request.query_params.get("nostr")
        return await _answer(
            request, lambda pubkey: pay_callback(ctx, pubkey, int(amount), zap_request)
        )

    async def attest(request: Request) -> JSONResponse:
        return await _attest(ctx, request, attesting)

    return Starlette(
        routes=[
            Route("/attest", attest),
            Route("/.well-known/lnurlp/{name}", first),
            Route("/lnurlp/{name}/callback", callback),
        ]
    )


async def _attest(ctx: Context, request: Request, attesting: trio.CapacityLimiter) -> JSONResponse:
    params = parse_params(AttestParams, {"nonce": request.query_params.get("nonce")})
    if isinstance(params, Refusal):
        return _refused(params)
    try:
        attesting.acquire_on_behalf_of_nowait(request)
    except trio.WouldBlock:
        return _refused(Refusal(Code.RATE_LIMITED, "too many ask at once; try again"))
    try:
        outcome = await attestation_for(ctx, params.nonce)
    except Exception:
        log.exception("attestation failed")
        outcome = Refusal(Code.INTERNAL, "that failed here; it is logged")
    finally:
        attesting.release_on_behalf_of(request)
    return _refused(outcome) if isinstance(outcome, Refusal) else _json(outcome)


async def _answer(request: Request, work: Any) -> JSONResponse:
    try:
        pubkey = pubkey_from_npub_untrusted(request.path_params["name"])
    except BadKey as error:
        return _json(invalid(str(error)))
    try:
        return _json(await work(pubkey))
    except Exception:
        log.exception("lnurl request failed", path=request.url.path)
        return _json(Refusal(Code.INTERNAL, "that failed here; it is logged"))


def _refused(refusal: Refusal) -> JSONResponse:
    return JSONResponse(
        {"error": str(refusal)}, status_code=_STATUS.get(refusal.code, 400), headers=_HEADERS
    )


def _json(outcome: dict[str, Any] | Refusal) -> JSONResponse:
    body = error_answer(str(outcome)) if isinstance(outcome, Refusal) else outcome
    return JSONResponse(body, headers=_HEADERS)


async def serve(
    ctx: Context,
    host: str,
    port: int,
    callbacks_per_minute: int = 60,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; ready when the port is bound.

    hypercorn's own `serve` ends as a whole when one connection raises (a malformed ``Upgrade: h2c`` is
    enough), so its connections are run here, one by one: a broken one ends alone.
    """
    config = HypercornConfig()
    config.accesslog = config.errorlog = None
    config.h11_max_incomplete_size = 16_384
    config.keep_alive_timeout = config.read_timeout = 15
    app, context = ASGIWrapper(build_app(ctx, callbacks_per_minute)), WorkerContext(None)  # type: ignore[arg-type]

    gate = Gate(places(MAX_CONNECTIONS, DESCRIPTORS_SHARE), MAX_PER_ADDRESS)

    async def connection(stream: trio.SocketStream) -> None:
        try:
            with gate.place(network_of_peer(stream)) as is_free:
                if is_free:
                    await TCPServer(app, config, context, ConnectionState({}), stream)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - h11, h2 and binascii all have their own
            log.warning("http connection failed", reason=repr(error)[:200])
        finally:
            await trio.aclose_forcefully(stream)

    listeners = await trio.open_tcp_listeners(port, host=host)
    task_status.started()
    await trio.serve_listeners(connection, listeners)
