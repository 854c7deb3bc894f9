"""The embedded relay: NIP-01, 09, 11, 40, 42, 45, 70. It can be the instance's own inbox.

`RelayServer.listen` hands events straight to the bot, verified once and without a socket hop;
`RelayServer.publish` takes the bot's own events the same way. The rules for an incoming event are the
list `_CHECKS`, one small function each, answering with NIP-01's words.
"""

import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import structlog
import trio
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from bot.clock import Clock
from bot.relay.event_store import EventStore
from bot.relay.websocket import Websocket, WebsocketGone, accept
from nips import kinds, nip01, nip42
from nips.errors import BadEvent, BadMessage
from nips.event import Event, VerifiedEvent, verify_event
from nips.filters import Filter
from nips.nip11 import RelayLimits, relay_document
from nips.nip40 import is_expired

log = structlog.get_logger()
Listener = Callable[[VerifiedEvent], None]
MINUTE_S = 60


@dataclass
class Session:
    """One client: its subscriptions, who it has proven to be, and how much it has sent lately."""

    websocket: Websocket
    challenge: str = field(default_factory=lambda: secrets.token_hex(16))
    challenged: bool = False
    subscriptions: dict[str, tuple[Filter, ...]] = field(default_factory=dict)
    pubkeys: set[str] = field(default_factory=set)
    minute: int = 0
    events_this_minute: int = 0
    queries_this_minute: int = 0

    def send(self, text: bytes) -> None:
        # A client that is gone, or was cut off for reading too slowly, ends in its own read loop.
        with suppress(WebsocketGone):
            self.websocket.send(text)

    def turn_minute(self, now: int) -> None:
        if self.minute != now // MINUTE_S:
            self.minute = now // MINUTE_S
            self.events_this_minute = self.queries_this_minute = 0


class RelayServer:
    """Holds the events and the sessions. `serve` accepts clients until cancelled."""

    def __init__(
        self,
        clock: Clock,
        *,
        name: str,
        pubkey: str | None,
        urls: Iterable[str] = (),
        limits: RelayLimits = RelayLimits(),
        path: Path | None = None,
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._name = name
        self.belongs_to(pubkey)
        self._urls = {url.rstrip("/") for url in urls}
        self._events = EventStore(limits.max_stored_events, limits.max_stored_bytes, path)
        self._listeners: list[Listener] = []
        self._sessions = 0
        # Subscriptions by what their filters ask for first, so that an event meets only likely ones.
        self._by_p: defaultdict[str, set[tuple[int, str]]] = defaultdict(set)
        self._by_kind: defaultdict[int, set[tuple[int, str]]] = defaultdict(set)
        self._open: set[tuple[int, str]] = set()
        self._clients: dict[int, Session] = {}

    def belongs_to(self, pubkey: str | None) -> None:
        """Whose relay this is (NIP-11); not known before the server has its key."""
        self._document = orjson.dumps(relay_document(self._name, pubkey, self._limits))

    def listen(self, listener: Listener) -> None:
        """Call this for every accepted event, right away; it must not block."""
        self._listeners.append(listener)

    async def serve(
        self, host: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Accept clients; reports the port that was bound."""
        listeners = await trio.open_tcp_listeners(port, host=host)
        bound: int = listeners[0].socket.getsockname()[1]
        self._urls |= {f"ws://{host}:{bound}"}
        task_status.started(bound)
        await trio.serve_listeners(self._client, listeners)

    def publish(self, event: VerifiedEvent) -> None:
        """The bot's own event: not limited."""
        if not kinds.is_ephemeral(event.kind):
            self._events.add(event, pinned=True)
        self._fan_out(event)

    def query(self, filters: Iterable[Filter]) -> list[VerifiedEvent]:
        found = self._events.query(filters, self._clock.now(), self._limits.max_limit)
        # What came since the start was verified then; only what was read from the file is now.
        return [verify_event(event) for event in found]

    # -- one client ---------------------------------------------------------------------------------

    async def _client(self, stream: trio.SocketStream) -> None:
        try:
            await self._serve_client(stream)
        except Exception:
            # One client's surprise must not end the relay for all others.
            log.exception("relay client failed")

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        async with self._session(stream) as session:
            if session is None:
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.websocket.run_writer)
                nursery.start_soon(self._heartbeat, session)
                async with aclosing(session.websocket.messages()) as frames:
                    async for frame in frames:
                        await self._hear(session, frame)
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def _session(self, stream: trio.SocketStream) -> AsyncIterator[Session | None]:
        if self._sessions >= self._limits.max_connections:
            await trio.aclose_forcefully(stream)
            yield None
            return
        self._sessions += 1
        session = None
        try:
            websocket = await accept(
                stream,
                max_message_bytes=self._limits.max_message_bytes,
                max_queued_bytes=self._limits.max_queued_bytes,
                answer_http=self._answer_http,
            )
            if websocket is not None:
                session = Session(websocket)
                self._clients[id(session)] = session
            yield session
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away in mid-sentence
        finally:
            self._sessions -= 1
            if session is not None:
                self._end(session)
                await session.websocket.close()
            await trio.aclose_forcefully(stream)

    async def _heartbeat(self, session: Session) -> None:
        """Clients that vanished without a word must not keep their places."""
        while True:
            await trio.sleep(self._limits.silent_s / 2)
            if trio.current_time() - session.websocket.last_heard > self._limits.silent_s:
                session.websocket.cut()
                return
            session.websocket.ping()

    def _end(self, session: Session) -> None:
        for sub_id in list(session.subscriptions):
            self._unsubscribe(session, sub_id)
        self._clients.pop(id(session), None)

    async def _answer_http(self, protocol: ServerProtocol, request: Request) -> Response | None:
        if "application/nostr+json" not in request.headers.get("Accept", ""):
            return None
        headers = Headers(
            [
                ("Content-Type", "application/nostr+json"),
                ("Content-Length", str(len(self._document))),
                ("Access-Control-Allow-Origin", "*"),
                ("Access-Control-Allow-Headers", "*"),
                ("Access-Control-Allow-Methods", "GET"),
                ("Connection", "close"),
            ]
        )
        return Response(200, "OK", headers, self._document)

    async def _hear(self, session: Session, frame: bytes) -> None:
        try:
            message = nip01.decode_client_untrusted(frame)
        except BadMessage as error:
            session.send(nip01.encode_refusal(frame, str(error)))
            return
        match message:
            case nip01.PublishMessage(event):
                self._hear_event(session, event)
            case nip01.ReqMessage(sub_id, filters):
                await self._hear_req(session, sub_id, filters)
            case nip01.CountMessage(sub_id, filters):
                self._hear_count(session, sub_id, filters)
            case nip01.CloseMessage(sub_id):
                self._unsubscribe(session, sub_id)
            case nip01.AuthResponse(event):
                self._hear_auth(session, event)

    def _hear_event(self, session: Session, event: Event) -> None:
        now = self._clock.now()
        for check in _CHECKS:
            reason = check(self, session, event, now)
            if reason:
                if reason.startswith("auth-required:"):
                    self._challenge(session)
                session.send(nip01.encode("OK", event.id, False, reason))
                return
        # The cheap checks first; the signature, which costs most, last.
        try:
            verified = verify_event(event)
        except BadEvent as error:
            session.send(nip01.encode("OK", event.id, False, f"invalid: {error}"))
            return
        reason = self._keep(verified)
        # NIP-01: having it already, or something newer, is no failure of the sender.
        accepted = not reason or reason.startswith("duplicate:")
        session.send(nip01.encode("OK", event.id, accepted, reason))
        if not reason:
            for listener in self._listeners:
                listener(verified)
            self._fan_out(verified)

    def _keep(self, event: VerifiedEvent) -> str:
        return "" if kinds.is_ephemeral(event.kind) else self._events.add(event)

    def _fan_out(self, event: VerifiedEvent) -> None:
        candidates = set(self._open)
        candidates |= self._by_kind.get(event.kind, set())
        for pubkey in event.tag_values("p"):
            candidates |= self._by_p.get(pubkey, set())
        for client, sub_id in candidates:
            session = self._clients.get(client)
            filters = session.subscriptions.get(sub_id, ()) if session is not None else ()
            if session is not None and any(f.matches(event) for f in filters):
                session.send(nip01.encode_event(sub_id, event))

    def _query_refusal(self, session: Session, filters: tuple[Filter, ...]) -> str:
        """Why a REQ or COUNT is not answered: each filter may have to look at every stored event."""
        session.turn_minute(self._clock.now())
        session.queries_this_minute += len(filters)
        if len(filters) > self._limits.max_filters:
            return "invalid: too many filters"
        over = session.queries_this_minute > self._limits.queries_per_minute
        return "rate-limited: too many queries" if over else ""

    def _hear_count(self, session: Session, sub_id: str, filters: tuple[Filter, ...]) -> None:
        reason = self._query_refusal(session, filters)
        if reason:
            session.send(nip01.encode("CLOSED", sub_id, reason))
            return
        count = self._events.count(filters, self._clock.now())
        session.send(nip01.encode("COUNT", sub_id, {"count": count}))

    async def _hear_req(self, session: Session, sub_id: str, filters: tuple[Filter, ...]) -> None:
        reason = self._query_refusal(session, filters)
        full = len(session.subscriptions) >= self._limits.max_subscriptions
        if not reason and full and sub_id not in session.subscriptions:
            reason = "rate-limited: too many subscriptions"
        if reason:
            session.send(nip01.encode("CLOSED", sub_id, reason))
            return
        # NIP-17 asks relays to serve gift wraps only to whom they are for; without AUTH support in a
        # client that would make it deaf, and a wrap tells nothing but its receiver. So they are served.
        self._unsubscribe(session, sub_id)
        session.subscriptions[sub_id] = filters
        for index_set in self._index_sets(filters):
            index_set.add((id(session), sub_id))
        for event in self._events.query(filters, self._clock.now(), self._limits.max_limit):
            session.send(nip01.encode_event(sub_id, event))
            # What is stored may be more than the queue holds: wait for the reader, and read no more
            # of its messages meanwhile.
            if session.websocket.queued_bytes > self._limits.max_queued_bytes // 4:
                await session.websocket.wait_drained()
        session.send(nip01.encode("EOSE", sub_id))

    def _unsubscribe(self, session: Session, sub_id: str) -> None:
        filters = session.subscriptions.pop(sub_id, ())
        for index_set in self._index_sets(filters):
            index_set.discard((id(session), sub_id))
        for wanted in filters:
            for pubkey in wanted.tags.get("p", ()):
                if not self._by_p[pubkey]:
                    del self._by_p[pubkey]

    def _index_sets(self, filters: tuple[Filter, ...]) -> Iterable[set[tuple[int, str]]]:
        for wanted in filters:
            if "p" in wanted.tags:
                yield from (self._by_p[pubkey] for pubkey in wanted.tags["p"])
            elif wanted.kinds is not None:
                yield from (self._by_kind[kind] for kind in wanted.kinds)
            else:
                yield self._open

    def _challenge(self, session: Session) -> None:
        if not session.challenged:
            session.challenged = True
            session.send(nip01.encode("AUTH", session.challenge))

    def _hear_auth(self, session: Session, event: Event) -> None:
        try:
            pubkey = nip42.verify_answer(
                event, frozenset(self._urls), session.challenge, self._clock.now()
            )
        except BadEvent as error:
            session.send(nip01.encode("OK", event.id, False, f"invalid: {error}"))
            return
        session.pubkeys.add(pubkey)
        session.send(nip01.encode("OK", event.id, True, ""))

    # -- checks: an empty string when the event passes ----------------------------------------------

    def _check_rate(self, session: Session, event: Event, now: int) -> str:
        session.turn_minute(now)
        session.events_this_minute += 1
        over = session.events_this_minute > self._limits.events_per_minute
        return "rate-limited: slow down" if over else ""

    def _check_size(self, session: Session, event: Event, now: int) -> str:
        if len(event.tags) > self._limits.max_event_tags:
            return "invalid: too many tags"
        too_long = len(event.content) > self._limits.max_content_bytes
        return "invalid: content is too long" if too_long else ""

    def _check_time(self, session: Session, event: Event, now: int) -> str:
        if event.created_at > now + self._limits.future_s:
            return "invalid: created_at is in the future"
        return "invalid: the event has expired" if is_expired(event, now) else ""

    def _check_protected(self, session: Session, event: Event, now: int) -> str:
        if event.kind == kinds.CLIENT_AUTH:
            return "invalid: an AUTH event is not to be published"
        if not event.has_tag("-") or event.pubkey in session.pubkeys:
            return ""
        if session.pubkeys:
            return "restricted: only its author may publish a protected event"
        return "auth-required: only its author may publish a protected event"


_CHECKS = (
    RelayServer._check_rate,  # noqa: SLF001 - the table of this class's own checks
    RelayServer._check_size,  # noqa: SLF001
    RelayServer._check_time,  # noqa: SLF001
    RelayServer._check_protected,  # noqa: SLF001
)
