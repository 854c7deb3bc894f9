"""One websocket over a trio stream, for both ends: websockets' sans-IO protocol in a thin shell.

`send` never blocks: frames wait in a bounded buffer and leave in one write as large as possible; a
peer that does not read fast enough is disconnected rather than buffered for. `messages` reads only
as fast as its consumer, so the peer feels back-pressure from TCP.

Error handling: whatever the peer does, `messages` ends (or raises `WebsocketGone` before the
handshake is over). Resource handling: leaving the context manager closes the stream.
"""

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import trio
from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

READ_BYTES = 65_536
HANDSHAKE_S = 10
DRAIN_S = 30
MAX_FRAGMENTS = 1_024
FindAddress = Callable[[str, int], Awaitable[str]]
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError, ssl.SSLError)


class WebsocketGone(Exception):
    """The connection cannot be used; the message says why."""


class Websocket:
    """An open connection. ``last_heard`` is trio time, for the heartbeat."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        protocol: ClientProtocol | ServerProtocol,
        max_queued_bytes: int,
    ) -> None:
        self._stream = stream
        self._protocol = protocol
        self._max_queued_bytes = max_queued_bytes
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._wake, self._drained = trio.Event(), trio.Event()
        self._cut = False
        self.last_heard = trio.current_time()

    def send(self, text: bytes) -> None:
        """Queue one text message. Raises `WebsocketGone` when the peer reads too slowly or is gone."""
        if self._protocol.state is not State.OPEN or self._cut:
            raise WebsocketGone("the connection is closed")
        if self._queued_bytes + len(text) > self._max_queued_bytes:
            self.cut()
            raise WebsocketGone("the peer reads too slowly")
        self._protocol.send_text(text)
        self._collect()

    def cut(self) -> None:
        """End the connection at once: what is queued is dropped, reading and writing stop."""
        self._cut = True
        self._queue.clear()
        self._queued_bytes = 0
        self._drained.set()
        _shut(self._stream)

    async def wait_drained(self) -> None:
        """Return when what is queued has been written; a peer that takes too long is cut off."""
        with trio.move_on_after(DRAIN_S) as scope:
            while self._queued_bytes and not self._cut:
                if self._drained.is_set():
                    # One that is not set is waited on by somebody else, and must not be replaced.
                    self._drained = trio.Event()
                await self._drained.wait()
        if scope.cancelled_caught:
            self.cut()

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    def ping(self) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"")
            self._collect()

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """Text messages until the connection ends, for whatever reason."""
        parts: list[bytes] = []
        while True:
            for frame in self._frames():
                self.last_heard = trio.current_time()
                if frame.opcode in (Opcode.PING, Opcode.PONG):
                    continue
                if frame.opcode not in (Opcode.TEXT, Opcode.CONT):
                    return
                if len(parts) >= MAX_FRAGMENTS:
                    # A message's size is bounded elsewhere; empty pieces of it are not.
                    return
                parts.append(bytes(frame.data))
                if frame.fin:
                    message, parts = b"".join(parts), []
                    yield message
            self._collect()
            if self._cut or self._protocol.state is not State.OPEN or not await self._read():
                return

    def _frames(self) -> list[Frame]:
        return [event for event in self._protocol.events_received() if isinstance(event, Frame)]

    async def _read(self) -> bool:
        try:
            data = await self._stream.receive_some(READ_BYTES)
        except _GONE:
            return False
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        return bool(data)

    async def run_writer(self) -> None:
        """Write what is queued, until the stream breaks or the task is cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            data, self._queue = b"".join(self._queue), []
            try:
                await self._stream.send_all(data)
            except _GONE:
                return
            # Only what the peer's end has taken counts as gone.
            self._queued_bytes = sum(map(len, self._queue))
            self._drained.set()

    def _collect(self) -> None:
        for data in self._protocol.data_to_send():
            self._queue.append(data)
            self._queued_bytes += len(data)
        if self._queue:
            self._wake.set()

    async def close(self) -> None:
        """Say goodbye if the stream takes it at once, then close it."""
        with trio.move_on_after(1) as scope:
            scope.shield = True
            try:
                if self._protocol.state is State.OPEN:
                    self._protocol.send_close(1000)
                rest = b"".join([*self._queue, *self._protocol.data_to_send()])
                if rest:
                    await self._stream.send_all(rest)
            except _GONE:
                pass
        await trio.aclose_forcefully(self._stream)


@asynccontextmanager
async def connect(
    url: str,
    *,
    max_message_bytes: int,
    max_queued_bytes: int,
    find_address: FindAddress | None = None,
) -> AsyncIterator[Websocket]:
    """Open ``ws://`` or ``wss://``. Raises `WebsocketGone` when the peer cannot be reached.

    ``find_address`` resolves the host, and may refuse to; the default is the system's resolver.
    """
    try:
        protocol = ClientProtocol(parse_uri(url), max_size=max_message_bytes)
        with trio.fail_after(HANDSHAKE_S):
            stream = await _open_stream(url, find_address)
            async with _closed_on_failure(stream):
                await _shake_hands(stream, protocol)
    except (*_GONE, trio.TooSlowError, WebSocketException, ValueError) as error:
        raise WebsocketGone(f"cannot connect: {str(error) or type(error).__name__}") from error
    websocket = Websocket(stream, protocol, max_queued_bytes)
    try:
        yield websocket
    finally:
        await websocket.close()


async def _open_stream(url: str, find_address: FindAddress | None) -> trio.abc.Stream:
    parts = urlsplit(url)
    secure = parts.scheme == "wss"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    tcp = await trio.open_tcp_stream(
        await find_address(host, port) if find_address else host, port
    )
    async with _closed_on_failure(tcp):
        # Small messages both ways: without this every reply waits for a delayed ACK.
        tcp.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        if not secure:
            return tcp
        context = ssl.create_default_context()
        tls = trio.SSLStream(tcp, context, server_hostname=parts.hostname, https_compatible=True)
        await tls.do_handshake()
        return tls


@asynccontextmanager
async def _closed_on_failure(stream: trio.abc.Stream) -> AsyncIterator[None]:
    """A peer that refuses, or keeps us waiting until we give up (cancelled), keeps no socket of ours."""
    try:
        yield
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def _shake_hands(stream: trio.abc.Stream, protocol: ClientProtocol) -> None:
    protocol.send_request(protocol.connect())
    await stream.send_all(b"".join(protocol.data_to_send()))
    while protocol.state is State.CONNECTING:
        data = await stream.receive_some(READ_BYTES)
        if not data:
            raise WebsocketGone("the peer closed during the handshake")
        protocol.receive_data(data)
        if protocol.handshake_exc is not None:
            raise WebsocketGone(f"no websocket there: {protocol.handshake_exc}")


async def accept(
    stream: trio.SocketStream,
    *,
    max_message_bytes: int,
    max_queued_bytes: int,
    answer_http: Callable[[ServerProtocol, Request], Awaitable[Response | None]],
) -> Websocket | None:
    """The server's side of the handshake. None when the request was answered as plain HTTP."""
    stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
    protocol = ServerProtocol(max_size=max_message_bytes)
    with trio.move_on_after(HANDSHAKE_S):
        while True:
            data = await stream.receive_some(READ_BYTES)
            protocol.receive_data(data) if data else protocol.receive_eof()
            for event in protocol.events_received():
                if isinstance(event, Request):
                    response = await answer_http(protocol, event) or protocol.accept(event)
                    protocol.send_response(response)
                    await stream.send_all(b"".join(protocol.data_to_send()))
                    if protocol.state is State.OPEN:
                        return Websocket(stream, protocol, max_queued_bytes)
                    return None
            if not data or protocol.state is State.CLOSED:
                break
    return None


def _shut(stream: trio.abc.Stream) -> None:
    """Make pending reads and writes fail now, from code that cannot await."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if isinstance(stream, trio.SocketStream):
        try:
            stream.socket.shutdown(trio.socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already
