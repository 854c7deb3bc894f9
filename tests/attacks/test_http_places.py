"""The HTTP server under connections that never finish a request."""

from contextlib import AsyncExitStack, suppress

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


async def is_refused(stream):
    with trio.move_on_after(0.05):
        try:
            return await stream.receive_some(1) == b""
        except trio.BrokenResourceError:
            return True
    return False


async def test_1300_unfinished_requests_of_one_address_shut_out_no_other(port):
    raise_descriptor_limit()
    async with AsyncExitStack() as stack:
        streams = []
        for _ in range(1_300):
            streams.append(await connect(port, "127.0.0.2"))
            stack.push_async_callback(trio.aclose_forcefully, streams[-1])
            with suppress(trio.BrokenResourceError):
                await streams[-1].send_all(HALF)
        with trio.fail_after(5):
            assert (await get(port, "127.0.0.3")).startswith(b"HTTP/1.1 200")
            assert (await get(port, "127.0.0.1")).startswith(b"HTTP/1.1 200")
        refused = [stream for stream in streams if await is_refused(stream)]
        assert len(refused) >= 1_300 - MAX_PER_ADDRESS
