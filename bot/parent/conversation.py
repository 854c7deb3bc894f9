"""One stream between enclave and parent: lines and blobs, each bounded in size and in time."""

from collections.abc import AsyncIterator, Sequence

import trio

from bot.parent.wire import MAX_LINE_BYTES, BadMessage

# Nothing moves for so long: the other side is gone, or holds us up.
SILENCE_S = 20.0
# A blob comes and goes at least as fast as this, however it drips.
LEAST_BYTES_PER_S = 1 << 18
CHUNK_BYTES = 1 << 20


class Conversation:
    """Raises `BadMessage` for what breaks the rules, OSError and `trio.TooSlowError` for what breaks the stream."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        # Vsock ignores it, and has its own.
        for option in (trio.socket.SO_SNDBUF, trio.socket.SO_RCVBUF):
            sock.setsockopt(trio.socket.SOL_SOCKET, option, CHUNK_BYTES)
        self._buffer = bytearray()

    async def line(self, within_s: float = SILENCE_S) -> bytes | None:
        """None at the end of the stream."""
        with trio.fail_after(within_s):
            while (end := self._buffer.find(b"\n")) < 0:
                if len(self._buffer) > MAX_LINE_BYTES:
                    raise BadMessage(f"a line of more than {MAX_LINE_BYTES} bytes")
                chunk = await self._sock.recv(MAX_LINE_BYTES)
                if not chunk:
                    return None
                self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def blob(self, size: int) -> AsyncIterator[bytes]:
        """Exactly so many bytes, in pieces. Who takes them may take his time: only what we wait for counts."""
        left, patience_s = size, _longest_s(size)
        while left:
            piece = bytes(self._buffer[:left])
            del self._buffer[: len(piece)]
            if not piece:
                began = trio.current_time()
                piece = await self._piece(min(left, CHUNK_BYTES), min(SILENCE_S, patience_s))
                patience_s -= trio.current_time() - began
            left -= len(piece)
            yield piece

    async def _piece(self, most: int, within_s: float) -> bytes:
        with trio.fail_after(max(0, within_s)):
            piece = await self._sock.recv(most)
        if not piece:
            raise BadMessage("the stream ended in the middle of a blob")
        return piece

    async def send(self, *parts: bytes | memoryview) -> None:
        """All of it, as one."""
        with trio.fail_after(_longest_s(sum(map(len, parts)))):
            # Joined: a pack has hundreds of parts, and each call costs more than its copy.
            await self._send(memoryview(b"".join(parts)))

    async def _send(self, view: memoryview) -> None:
        while view:
            with trio.fail_after(SILENCE_S):
                sent = await self._sock.send(view[:CHUNK_BYTES])
            view = view[sent:]


def _longest_s(size: int) -> float:
    return SILENCE_S + size / LEAST_BYTES_PER_S


async def collected(pieces: AsyncIterator[bytes]) -> bytes:
    """A blob as one."""
    parts: Sequence[bytes] = [piece async for piece in pieces]
    return b"".join(parts)
