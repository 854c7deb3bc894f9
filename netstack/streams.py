"""Byte streams across the vsock: TCP or Unix on one side, AF_VSOCK on the other, closed half by half.

For what is no packet: the parent's services, the disk's backup. A slow reader stops the writer.
"""

from contextlib import suppress
from dataclasses import dataclass

import structlog
import trio

from netstack import vsock

log = structlog.get_logger()
MOST_CONNECTIONS = 64
CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True)
class Stream:
    """Each connection to ``source`` is joined to a new one to ``target``."""

    source: vsock.Address
    target: vsock.Address


async def serve(
    stream: Stream, listener: trio.socket.SocketType, peer_cid: int | None = None
) -> None:
    """Until cancelled."""
    places = trio.CapacityLimiter(MOST_CONNECTIONS)
    async with trio.open_nursery() as nursery:
        async for sock in vsock.accept_forever(listener, peer_cid):
            nursery.start_soon(_join, sock, stream, places)


async def _join(
    sock: trio.socket.SocketType, stream: Stream, places: trio.CapacityLimiter
) -> None:
    with sock:
        try:
            places.acquire_on_behalf_of_nowait(sock)
        except trio.WouldBlock:
            log.warning("stream.full", source=str(stream.source), connections=MOST_CONNECTIONS)
            return
        try:
            with await vsock.connect(stream.target) as other:
                await join(sock, other)
        except (OSError, trio.TooSlowError) as error:
            log.info("stream.broken", target=str(stream.target), reason=str(error))
        finally:
            places.release_on_behalf_of(sock)


async def join(one: trio.socket.SocketType, other: trio.socket.SocketType) -> None:
    """Both ways until both have ended. Raises OSError when either breaks."""
    broken: list[OSError] = []

    async def copy(source: trio.socket.SocketType, target: trio.socket.SocketType) -> None:
        try:
            await _copy(source, target)
        except OSError as error:
            broken.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy, one, other)
        nursery.start_soon(copy, other, one)
    if broken:
        raise broken[0]


async def _copy(source: trio.socket.SocketType, target: trio.socket.SocketType) -> None:
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    while size := await source.recv_into(buffer):
        sent = 0
        while sent < size:
            sent += await target.send(view[sent:size])
    with suppress(OSError):  # the other way may have closed all of it
        target.shutdown(trio.socket.SHUT_WR)
