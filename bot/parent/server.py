"""Answers the enclave. What it sends is bounded and never interpreted; nobody's connection can take another's place."""

import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from bot.files import read_bounded
from bot.parent.conversation import Conversation
from bot.parent.store import BlobStore
from bot.parent.wire import (
    MAX_BLOB_BYTES,
    MAX_DELETED_NAMES,
    MAX_META_BYTES,
    BadMessage,
    Reply,
    Request,
    decode_request_untrusted,
    encode_event,
    encode_line,
    size_in,
    text_in,
)
from netstack import vsock

log = structlog.get_logger()
BACKUP = "backup"
MOST_CONNECTIONS, MOST_LISTENERS = 64, 8
MOST_LOG_LINES, MOST_LOG_CHARACTERS = 1_000, 4_000
MOST_REPORT_BYTES = 16_384
IDLE_S = 600.0


@dataclass
class Told:
    """What the enclave said by itself: its log's newest lines, and its newest report with its time (Unix seconds)."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_LOG_LINES))
    report: Mapping[str, object] = field(default_factory=dict)
    reported_at: float | None = None


class ParentServer:
    """``claims``: what ``get_ip`` answers. ``instance``: the folder with build.json, instance.json, releases/."""

    def __init__(self, store: BlobStore, instance: Path, ip: str, *, prod: bool = False) -> None:
        self._store, self._instance, self._ip, self._prod = store, instance, ip, prod
        self.told = Told()
        self._listeners: set[trio.MemorySendChannel[str]] = set()
        self._methods: dict[str, Callable[[Request, Conversation], Awaitable[None]]] = {
            "get_ip": self._get_ip,
            "get_meta": self._get_meta,
            "has_backup": self._has_backup,
            "log": self._log,
            "report": self._report,
            "events": self._events,
            "put": self._put,
            "get": self._get,
            "list": self._list,
            "delete": self._delete,
        }

    @property
    def listeners(self) -> int:
        """How many wait for our word; an enclave that is up does."""
        return len(self._listeners)

    def tell(self, event: str) -> int:
        """Tell the enclave what its operator wants. How many heard it."""
        told = 0
        for send in self._listeners:
            with suppress(trio.WouldBlock):
                send.send_nowait(event)
                told += 1
        return told

    async def serve(self, listener: trio.socket.SocketType, peer_cid: int | None = None) -> None:
        """Until cancelled."""
        places = trio.CapacityLimiter(MOST_CONNECTIONS)
        async with trio.open_nursery() as nursery:
            async for sock in vsock.accept_forever(listener, peer_cid):
                nursery.start_soon(self._converse, sock, places)

    async def _converse(self, sock: trio.socket.SocketType, places: trio.CapacityLimiter) -> None:
        with sock:
            try:
                places.acquire_on_behalf_of_nowait(sock)
            except trio.WouldBlock:
                log.warning("parent.full", connections=MOST_CONNECTIONS)
                return
            try:
                talk = Conversation(sock)
                while (line := await talk.line(IDLE_S)) is not None:
                    await self._answer(decode_request_untrusted(line), talk)
            except (OSError, BadMessage, trio.TooSlowError) as error:
                log.info("parent.closed", reason=str(error) or type(error).__name__)
            finally:
                places.release_on_behalf_of(sock)

    async def _answer(self, request: Request, talk: Conversation) -> None:
        method = self._methods.get(request.method)
        if method is None:
            await talk.send(
                encode_line(Reply(request.number, error=f"no method {request.method}"))
            )
            return
        await method(request, talk)

    # -- claims -----------------------------------------------------------------------------------------

    async def _get_ip(self, request: Request, talk: Conversation) -> None:
        await talk.send(encode_line(Reply(request.number, {"ip": self._ip})))

    async def _get_meta(self, request: Request, talk: Conversation) -> None:
        raw = await trio.to_thread.run_sync(read_meta, self._instance, self._prod)
        await _send_blob(request, talk, raw)

    async def _has_backup(self, request: Request, talk: Conversation) -> None:
        has = await self._store.size(BACKUP) is not None
        await talk.send(encode_line(Reply(request.number, {"has_backup": has})))

    # -- what the enclave tells ---------------------------------------------------------------------------

    async def _log(self, request: Request, talk: Conversation) -> None:
        self.told.lines.append(text_in(request.params, "text", MOST_LOG_CHARACTERS))
        await talk.send(encode_line(Reply(request.number, "ok")))

    async def _report(self, request: Request, talk: Conversation) -> None:
        if len(json.dumps(request.params)) > MOST_REPORT_BYTES:
            raise BadMessage(f"a report has at most {MOST_REPORT_BYTES} bytes")
        self.told.report, self.told.reported_at = request.params, time.time()  # noqa: TID251 - the host's own
        await talk.send(encode_line(Reply(request.number, "ok")))

    async def _events(self, request: Request, talk: Conversation) -> None:
        if len(self._listeners) >= MOST_LISTENERS:
            await talk.send(encode_line(Reply(request.number, error="too many listen already")))
            return
        send, receive = trio.open_memory_channel[str](4)
        self._listeners.add(send)
        try:
            await talk.send(encode_line(Reply(request.number, "ok")))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_gone, talk, nursery.cancel_scope)
                async for kind in receive:
                    await talk.send(encode_event(kind))
        finally:
            self._listeners.discard(send)

    # -- blobs ------------------------------------------------------------------------------------------

    async def _put(self, request: Request, talk: Conversation) -> None:
        name, size = text_in(request.params, "name", 100), size_in(request.params)
        pieces = talk.blob(size)
        try:
            await self._store.put(name, pieces)
        except OSError as error:
            log.error("parent.cannot_keep", name=name, reason=str(error))
            async for _ in pieces:
                pass  # what it still sends must not be taken for a line
            await talk.send(encode_line(Reply(request.number, error=f"cannot be kept: {error}")))
            return
        await talk.send(encode_line(Reply(request.number, "ok")))

    async def _get(self, request: Request, talk: Conversation) -> None:
        try:
            raw = await self._store.get(text_in(request.params, "name", 100), MAX_BLOB_BYTES)
        except OSError as error:
            await talk.send(encode_line(Reply(request.number, error=str(error))))
            return
        await _send_blob(request, talk, raw)

    async def _list(self, request: Request, talk: Conversation) -> None:
        await _send_blob(request, talk, "\n".join(await self._store.names()).encode())

    async def _delete(self, request: Request, talk: Conversation) -> None:
        names = request.params.get("names")
        if not isinstance(names, list) or len(names) > MAX_DELETED_NAMES:
            raise BadMessage(f"names must be a list of at most {MAX_DELETED_NAMES}")
        try:
            await self._store.delete([str(name) for name in names])
        except OSError as error:
            await talk.send(encode_line(Reply(request.number, error=str(error))))
            return
        await talk.send(encode_line(Reply(request.number, "ok")))


async def _send_blob(request: Request, talk: Conversation, raw: bytes | None) -> None:
    if raw is None:
        await talk.send(encode_line(Reply(request.number, None)))
    else:
        await talk.send(encode_line(Reply(request.number, {"size": len(raw)})), raw)


async def _until_gone(talk: Conversation, scope: trio.CancelScope) -> None:
    """Who only listens says nothing more; its end is all that comes."""
    try:
        await talk.line(float("inf"))
    except (OSError, BadMessage):
        pass
    scope.cancel()


def read_meta(instance: Path, prod: bool) -> bytes:
    """What the operator's folder says of this instance, as one JSON. What cannot be read is left out, with a line."""
    meta: dict[str, object] = {"prod": prod, "releases": []}
    for name, path in (
        ("build", instance / "build.json"),
        ("instance", instance / "instance.json"),
    ):
        meta[name] = _read(path)
    releases = sorted((instance / "releases").glob("*.json")) if instance.is_dir() else []
    meta["releases"] = [event for path in releases[:100] if (event := _read(path)) is not None]
    return json.dumps({name: value for name, value in meta.items() if value is not None}).encode()


def _read(path: Path) -> object:
    try:
        return json.loads(read_bounded(path, MAX_META_BYTES // 16))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.warning("meta.unreadable", file=str(path), reason=str(error))
        return None
