"""The HTTP server under connections that never finish a request."""

from contextlib import AsyncExitStack

import pytest
import trio

from bot.devstack.engine import free_port
from bot.relay.gate import raise_descriptor_limit
from bot.server.http.server import MAX_PER_ADDRESS, serve
from nips.keys import SecretKey
from nips.nip19 import npub
from tests.attacks.wire import connect

HALF = b"GET /x HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture
async def port(world, nursery):
    bound = free_port()
    await nursery.start(serve, world.ctx, "127.0.0.1", bound)
    return bound


async def get(port, source):
    """The whole answer to a good request."""
    stream = await connect(port, source)
    path = f"/.well-known/lnurlp/{npub(SecretKey.generate().pubkey)}"
    await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while data := await stream.receive_some(4_096):
        answer += data
    await stream.aclose()
    return answer


async def test_1300_unfinished_requests_of_one_address_shut_out_no_other(port):
    raise_descriptor_limit()
    async with AsyncExitStack() as stack:
        refused = 0
        for _ in range(1_300):
            stream = await connect(port, "127.0.0.2")
            stack.push_async_callback(trio.aclose_forcefully, stream)
            try:
                await stream.send_all(HALF)
                with trio.move_on_after(0):
                    refused += await stream.receive_some(1) == b""
            except trio.BrokenResourceError:
                refused += 1
        with trio.fail_after(5):
            assert (await get(port, "127.0.0.3")).startswith(b"HTTP/1.1 200")
            assert (await get(port, "127.0.0.1")).startswith(b"HTTP/1.1 200")
        assert refused <= 1_300 - MAX_PER_ADDRESS
