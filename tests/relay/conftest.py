"""A relay of ours on a free port, a pool on it, and a hostile relay that does as it is told."""

from contextlib import asynccontextmanager

import orjson
import pytest
import trio

from bot.clock import SystemClock
from bot.relay.connection import RelayPolicy
from bot.relay.pool import RelayPool
from bot.relay.server import RelayServer
from bot.relay.websocket import WebsocketGone, accept
from nips.event import sign_event
from nips.keys import SecretKey
from nips.nip11 import RelayLimits

QUICK = RelayPolicy(
    heartbeat_s=0.3,
    pong_s=0.2,
    backoff_first_s=0.05,
    backoff_most_s=0.2,
    resubscribe_s=0.05,
    ok_timeout_s=0.5,
)


@asynccontextmanager
async def relay(limits=RelayLimits(), path=None, port=0, *, is_open=True, **kwargs):
    server = RelayServer(
        SystemClock(),
        name="t",
        pubkey="0" * 64,
        limits=limits,
        path=path,
        is_open=is_open,
        **kwargs,
    )
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(server.serve, "127.0.0.1", port)
        yield server, f"ws://127.0.0.1:{bound}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def pool(*urls, key=None, policy=QUICK, clock=None):
    made = RelayPool(clock or SystemClock(), auth_key=key, policy=policy)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        for url in urls:
            made.add(url)
        if urls:
            await made.wait_connected()
        yield made
        nursery.cancel_scope.cancel()


class HostileRelay:
    """Accepts websockets; `script(relay, websocket, message)` is called for every message it hears."""

    def __init__(self, script):
        self.script, self.connections, self.heard = script, 0, []

    async def serve(self, task_status=trio.TASK_STATUS_IGNORED):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        await trio.serve_listeners(self._client, listeners)

    async def _client(self, stream):
        async def no_http(*_):
            return None

        websocket = await accept(
            stream, max_message_bytes=1 << 20, max_queued_bytes=1 << 26, answer_http=no_http
        )
        if websocket is None:
            return
        self.connections += 1
        self.stream = stream
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.run_writer)
            async for frame in websocket.messages():
                message = orjson.loads(frame)
                self.heard.append(message)
                try:
                    await self.script(self, websocket, message)
                except WebsocketGone:
                    break
            nursery.cancel_scope.cancel()
        await websocket.close()


@asynccontextmanager
async def hostile(script):
    made = HostileRelay(script)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(made.serve)
        yield made, url
        nursery.cancel_scope.cancel()


def note(key=None, content="hi", kind=1, tags=(), at=None):
    return sign_event(
        key or SecretKey.generate(), kind, content, tags, SystemClock().now() if at is None else at
    )


@pytest.fixture
def key():
    return SecretKey.generate()


async def eventually(condition, seconds=5):
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)
