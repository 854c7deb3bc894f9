"""The channel for containers: a websocket that each of them can open from inside, and nobody else.

``{id, method, params}`` in, ``{id, result}`` or ``{id, error}`` out. A caller is known by two things that must agree:
the address it calls from, which is its container's alone, and the token that its environment holds. A
token that leaked is worth nothing elsewhere; an address alone is not asked anything.
"""

import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import Any

import orjson
import structlog
import trio
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from bot.relay.websocket import WebsocketGone, accept
from handlers.certify import CertificateParams, Certifier, ChallengeParams, container_token
from handlers.context import Context
from handlers.errors import Code, Refusal, invalid, not_found
from handlers.params import parse_params

log = structlog.get_logger()
MAX_MESSAGE_BYTES, MAX_QUEUED_BYTES = 65_536, 1 << 18
MAX_CONNECTIONS, MAX_PER_ADDRESS = 512, 4
SILENT_S = 600
LOOKS, LOOK_AGAIN_S = 5, 0.1
Method = tuple[type, Callable[[Context, str, Any], Awaitable[Any]]]


class ContainerDoor:
    """Serves every container of ours, until cancelled."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        certifier = Certifier()
        self._methods: dict[str, Method] = {
            "get_challenge": (ChallengeParams, certifier.challenge),
            "create_certificate": (CertificateParams, certifier.certificate),
        }
        self._open: Counter[str] = Counter()

    async def serve(
        self, host: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Reports the port that was bound."""
        listeners = await trio.open_tcp_listeners(port, host=host)
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(self._client, listeners)

    async def _client(self, stream: trio.SocketStream) -> None:
        try:
            address = str(stream.socket.getpeername()[0]).removeprefix("::ffff:")
            with self._place(address) as is_free:
                if is_free:
                    await self._serve_client(stream, address)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it went away in mid-sentence
        except Exception:
            # One container's surprise must not end the door for all others.
            log.exception("container channel failed")
        finally:
            await trio.aclose_forcefully(stream)

    @contextmanager
    def _place(self, address: str) -> Iterator[bool]:
        """Counted from the first byte: who says nothing takes up a place as well."""
        if self._open[address] >= MAX_PER_ADDRESS or self._open.total() >= MAX_CONNECTIONS:
            yield False
            return
        self._open[address] += 1
        try:
            yield True
        finally:
            self._open[address] -= 1
            self._open = +self._open  # addresses without a connection are forgotten

    async def _serve_client(self, stream: trio.SocketStream, address: str) -> None:
        caller: list[str] = []

        async def check(protocol: ServerProtocol, request: Request) -> Response | None:
            container = await self._who(address, request.headers.get("token", ""))
            if container is None:
                return protocol.reject(HTTPStatus.FORBIDDEN, "not your channel\n")
            caller.append(container)
            return None

        websocket = await accept(
            stream,
            max_message_bytes=MAX_MESSAGE_BYTES,
            max_queued_bytes=MAX_QUEUED_BYTES,
            answer_http=check,
        )
        if websocket is None:
            return
        (container,) = caller
        try:
            async with trio.open_nursery() as nursery, aclosing(websocket.messages()) as frames:
                nursery.start_soon(websocket.run_writer)
                with trio.move_on_after(SILENT_S) as patience:
                    async for frame in frames:
                        patience.deadline = trio.current_time() + SILENT_S
                        try:
                            websocket.send(await self.answer(container, frame))
                        except WebsocketGone:
                            break
                nursery.cancel_scope.cancel()
        finally:
            await websocket.close()

    async def _who(self, address: str, token: str) -> str | None:
        """The container that calls, or None when address and token do not agree."""
        pubkey = await self._container_at(address)
        if pubkey is None:
            return None
        row = await self._ctx.store.read(lambda tx: tx.containers.find(pubkey))
        if row is None:
            return None
        expected = container_token(self._ctx, pubkey, row.generation)
        given = token.encode(errors="surrogateescape")
        return pubkey if hmac.compare_digest(expected.encode(), given) else None

    async def _container_at(self, address: str) -> str | None:
        """Docker lists a container a moment after its first process began, which may knock at once."""
        for _ in range(LOOKS):
            pubkey = (await self._ctx.engine.addresses()).get(address)
            if pubkey is not None:
                return pubkey
            await trio.sleep(LOOK_AGAIN_S)
        return None

    async def answer(self, container: str, frame: bytes) -> bytes:
        """One request; never raises for anything that a request can cause."""
        call_id: object = None
        try:
            match orjson.loads(frame):
                case {
                    "id": str() | int() as call_id,
                    "method": str(method),
                    "params": dict(params),
                }:
                    outcome = await self._call(container, method, params)
                case _:
                    outcome = invalid("a request is {id, method: string, params: object}")
        except orjson.JSONDecodeError:
            outcome = invalid("a request is JSON")
        except Exception:
            log.exception("container request failed", container=container)
            outcome = Refusal(Code.INTERNAL, "that failed here; it is logged")
        told = {"error": str(outcome)} if isinstance(outcome, Refusal) else {"result": outcome}
        return orjson.dumps({"id": call_id} | told)

    async def _call(self, container: str, method: str, params: dict[str, Any]) -> Any | Refusal:
        if method not in self._methods:
            return not_found(f"there is no such method; there are {', '.join(self._methods)}")
        declared, work = self._methods[method]
        typed: Any = parse_params(declared, params)
        return typed if isinstance(typed, Refusal) else await work(self._ctx, container, typed)
