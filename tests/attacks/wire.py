"""A websocket client as an attacker writes one: any source address, any bytes, and nothing is read."""

import json
from contextlib import asynccontextmanager

import trio

TEXT, PING = 1, 9
SHAKE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(payload, opcode=TEXT):
    """One masked frame; the mask is zero, which changes nothing."""
    size = len(payload)
    if size < 126:
        head = bytes([0x80 | opcode, 0x80 | size])
    elif size < 65_536:
        head = bytes([0x80 | opcode, 0xFE]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x80 | opcode, 0xFF]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


def message(*parts):
    return frame(json.dumps(parts).encode())


async def connect(port, source):
    return await trio.open_tcp_stream("127.0.0.1", port, local_address=source)


@asynccontextmanager
async def websocket(port, source):
    """An open websocket, as a stream of bytes. Raises `trio.BrokenResourceError` when it is refused."""
    stream = await connect(port, source)
    try:
        await stream.send_all(SHAKE)
        head = b""
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some(4_096)
            if not data:
                raise trio.BrokenResourceError("refused")
            head += data
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


async def drain(stream):
    try:
        while await stream.receive_some(1 << 16):
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
