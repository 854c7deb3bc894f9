"""The embedded relay: NIP-01, 09, 11, 40, 42, 45, 70. It is the inbox of an instance, not a public relay.

It takes events by or addressed to whom it serves (`serve_for`) and no others, unless it ``is_open``, as in development.
`RelayServer.listen` hands events straight to the bot, verified once and without a socket hop;
`RelayServer.publish` takes the bot's own events the same way. The rules for an incoming event are the
list `_CHECKS`, one small function each, answering with NIP-01's words.

Ephemeral events never touch the disk. What is stored and asked for goes through worker threads, with turns and an allowance
for each filter, so that the loop and other clients go on.
"""

import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
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
from bot.relay.event_search import Row
from bot.relay.event_store import UNABLE, EventStore, Room
from bot.relay.event_tables import Budget
from bot.relay.gate import Gate, network_of_peer, places
from bot.relay.guests import FRAME_BYTES, Guest, Guests
from bot.relay.reader import Reader
from bot.relay.subscriptions import Subscriptions, Weight
from bot.relay.websocket import Backlog, Websocket, WebsocketGone, accept
from nips import kinds, nip01, nip42
from nips.errors import BadEvent, BadMessage
from nips.event import Event, VerifiedEvent, verify_event
from nips.filters import Filter
from nips.nip11 import RelayLimits, relay_document
from nips.nip40 import is_expired
from nips.relay_url import normal_url

log = structlog.get_logger()
Listener = Callable[[VerifiedEvent], None]
TIDY_EVERY_S = 10
# After so many frames of one client others get a turn.
FRAMES_AT_ONCE = 20
MAX_PUBKEYS = 64
MOST_IN_GROUP = 256
DESCRIPTORS_SHARE = 0.6
NOT_KEPT = (
    "restricted: this relay keeps only what is by or addressed to (p tag) its instance, its containers,"
    " its wallet and its key escrow"
)
TOO_MUCH = "error: that looks at too many events; ask for less at once"


@dataclass(eq=False)
class Session:
    """One client: its connection, as whose guest it is here, and who it has proven to be."""

    websocket: Websocket
    guest: Guest
    challenge: str = field(default_factory=lambda: secrets.token_hex(16))
    challenged: bool = False
    pubkeys: set[str] = field(default_factory=set)
    last_said: float = field(default_factory=trio.current_time)

    def send(self, text: bytes) -> None:
        # A client that is gone, or was cut off for reading too slowly, ends in its own read loop.
        with suppress(WebsocketGone):
            self.websocket.send(text)


@dataclass(frozen=True)
class Load:
    """What strangers take up at this moment."""

    connections: int
    live: Weight
    queued_bytes: int
    waiting_queries: int


class RelayServer:
    """Holds the events and the sessions. `serve` accepts clients until cancelled, and closes the store."""

    def __init__(
        self,
        clock: Clock,
        *,
        name: str,
        pubkey: str | None,
        urls: Iterable[str] = (),
        limits: RelayLimits = RelayLimits(),
        path: Path | None = None,
        is_open: bool = False,
    ) -> None:
        self._clock, self._limits, self._name, self._is_open = clock, limits, name, is_open
        self._urls = {normal_url(url) for url in urls}
        own = Room(limits.max_own_events, limits.max_own_bytes)
        strangers = Room(limits.max_stored_events, limits.max_stored_bytes)
        rooms = {Budget.STRANGERS: strangers, Budget.SERVED: own, Budget.OWN: own}
        self._store = EventStore(rooms, path)
        self._served = self._store.served()
        self._ours: frozenset[str] = frozenset().union(*self._served.values())
        self._reader = Reader(self._store, limits.query_rows, limits.query_s)
        self._listeners: list[Listener] = []
        most = places(limits.max_connections, DESCRIPTORS_SHARE)
        self._gate = Gate(most, limits.max_connections_per_address, limits.own_addresses)
        self._guests = Guests(clock, self._gate)
        self._backlog = Backlog(limits.all_queued_bytes)
        self._live: Subscriptions[Session] = Subscriptions(
            Weight(limits.connection_filters, limits.connection_values),
            Weight(limits.guest_filters, limits.guest_values),
            Weight(limits.all_filters, limits.all_values),
        )
        self.belongs_to(pubkey)

    def belongs_to(self, pubkey: str | None) -> None:
        """Whose relay this is (NIP-11); not known before the server has its key."""
        document = relay_document(self._name, pubkey, self._limits, is_open=self._is_open)
        self._document = orjson.dumps(document)

    async def serve_for(self, who: str, pubkeys: Iterable[str]) -> None:
        """Take what is by or to these from now on, also after a restart, in place of the last ``who``.

        What they say themselves is safe from strangers. ``who``: a name for the group, such as ``wallet``.
        """
        group = frozenset(pubkeys)
        if self._served.get(who) == group:
            return
        self._served[who] = group
        self._ours = frozenset().union(*self._served.values())
        await self._store.serve(who, group)

    async def serve_also(self, who: str, pubkeys: Iterable[str]) -> None:
        """As `serve_for`, but who was in the group stays, up to `MOST_IN_GROUP`: he may be away for a while."""
        new, known = frozenset(pubkeys), self._served.get(who, frozenset())
        both = new | known
        await self.serve_for(who, both if len(both) <= MOST_IN_GROUP else new)

    def listen(self, listener: Listener) -> None:
        """Call this for every accepted event, right away; it must not block."""
        self._listeners.append(listener)

    async def serve(
        self, host: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Accept clients; reports the port that was bound."""
        listeners = await trio.open_tcp_listeners(port, host=host)
        bound: int = listeners[0].socket.getsockname()[1]
        self._urls.add(normal_url(f"ws://{host}:{bound}"))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tidy)
                task_status.started(bound)
                await trio.serve_listeners(self._client, listeners)
        finally:
            self.close()

    def close(self) -> None:
        """Close the database; for a relay that does not `serve`."""
        self._reader.close()
        self._store.close()

    async def publish(self, event: VerifiedEvent) -> bool:
        """The bot's own event: not limited. False when it cannot be stored."""
        if not kinds.is_ephemeral(event.kind):
            reason = await self._store.add(event, Budget.OWN, self._clock.now())
            if reason == UNABLE:
                return False
        self._fan_out(event)
        return True

    async def query(self, filters: Iterable[Filter]) -> list[VerifiedEvent]:
        """What the bot itself asks: it waits for no stranger."""
        found = await self._reader.own(filters, self._limits.max_limit, self._clock.now())
        return [verify_event(event) for event in found]

    def load(self) -> Load:
        return Load(
            len(self._gate), self._live.weight, self._backlog.queued_bytes, self._reader.waiting
        )

    async def stored(self) -> dict[Budget, Room]:
        """How many events, and bytes, are stored of each class."""
        return await self._store.size()

    async def _tidy(self) -> None:
        while True:
            await trio.sleep(TIDY_EVERY_S)
            await self._store.tidy(self._clock.now())

    # -- one client ---------------------------------------------------------------------------------

    async def _client(self, stream: trio.SocketStream) -> None:
        try:
            network = network_of_peer(stream)
            with self._gate.place(network) as is_free, self._guests.at(network) as guest:
                guest.turn_minute(self._clock.now())
                if is_free and guest.frames <= self._limits.frames_per_minute:
                    await self._serve_client(stream, guest)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away in mid-sentence
        except Exception:
            # One client's surprise must not end the relay for all others.
            log.exception("relay client failed")
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve_client(self, stream: trio.SocketStream, guest: Guest) -> None:
        async with self._session(stream, guest) as session:
            if session is None:
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.websocket.run_writer)
                nursery.start_soon(self._heartbeat, session)
                async with aclosing(session.websocket.messages()) as frames:
                    await self._hear_all(session, frames)
                nursery.cancel_scope.cancel()

    async def _hear_all(self, session: Session, frames: AsyncIterator[bytes]) -> None:
        number, guest = 0, session.guest
        async for frame in frames:
            number += 1
            session.last_said = trio.current_time()
            guest.hears(frame, self._clock.now())
            if guest.frames > self._limits.frames_per_minute:
                session.send(nip01.encode("NOTICE", "rate-limited: too many messages"))
                return
            if len(frame) > FRAME_BYTES:
                # What takes long to read is read one by one, whatever number of connections it comes through.
                async with guest.reading:
                    message = self._read(session, frame)
            else:
                message = self._read(session, frame)
            if message is not None:
                await self._hear(session, message)
            if number % FRAMES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    def _read(self, session: Session, frame: bytes) -> nip01.ClientMessage | None:
        try:
            return nip01.decode_client_untrusted(frame)
        except BadMessage as error:
            session.send(nip01.encode_refusal(frame, str(error)))
            return None

    @asynccontextmanager
    async def _session(
        self, stream: trio.SocketStream, guest: Guest
    ) -> AsyncIterator[Session | None]:
        websocket = await accept(
            stream,
            max_message_bytes=self._limits.max_message_bytes,
            max_queued_bytes=self._limits.max_queued_bytes,
            answer_http=self._answer_http,
            backlog=self._backlog,
        )
        if websocket is None:
            yield None
            return
        session = Session(websocket, guest)
        try:
            yield session
        finally:
            for sub_id in list(self._live.of(session)):
                self._live.drop(session, guest, sub_id)
            await websocket.close()

    async def _heartbeat(self, session: Session) -> None:
        """Clients that vanished without a word, or want nothing, must not keep their places."""
        limits, websocket = self._limits, session.websocket
        every_s = min(limits.silent_s, limits.idle_s) / 2
        while True:
            await trio.sleep(every_s)
            now = trio.current_time()
            wants = bool(self._live.of(session))
            is_idle = not wants and now - session.last_said > limits.idle_s
            if is_idle or now - websocket.last_heard > limits.silent_s:
                websocket.cut()
                return
            websocket.ping()

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

    async def _hear(self, session: Session, message: nip01.ClientMessage) -> None:
        match message:
            case nip01.PublishMessage(event):
                await self._hear_event(session, event)
            case nip01.ReqMessage(sub_id, filters):
                await self._hear_req(session, sub_id, filters)
            case nip01.CountMessage(sub_id, filters):
                await self._hear_count(session, sub_id, filters)
            case nip01.CloseMessage(sub_id):
                self._live.drop(session, session.guest, sub_id)
            case nip01.AuthResponse(event):
                self._hear_auth(session, event)

    async def _hear_event(self, session: Session, event: Event) -> None:
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
        reason = "" if kinds.is_ephemeral(event.kind) else await self._keep(verified, now)
        # NIP-01: having it already, or something newer, is no failure of the sender.
        accepted = not reason or reason.startswith("duplicate:")
        session.send(nip01.encode("OK", event.id, accepted, reason))
        if not reason:
            for listener in self._listeners:
                listener(verified)
            self._fan_out(verified)

    async def _keep(self, event: Event, now: int) -> str:
        budget = Budget.SERVED if event.pubkey in self._ours else Budget.STRANGERS
        return await self._store.add(event, budget, now, if_it_deletes=not self._is_for_us(event))

    def _is_for_us(self, event: Event) -> bool:
        if self._is_open or event.pubkey in self._ours:
            return True
        return not self._ours.isdisjoint(event.tag_values("p"))

    def _fan_out(self, event: Event) -> None:
        for subscription in self._live.wanting(event):
            subscription.client.send(nip01.encode_event(subscription.sub_id, event))

    def _query_refusal(self, session: Session, filters: Sequence[Filter]) -> str:
        """Why a REQ or COUNT is not answered: each filter is a search of its own."""
        session.guest.queries += len(filters)
        if len(filters) > self._limits.max_filters:
            return "invalid: too many filters"
        over = session.guest.queries > self._limits.queries_per_minute
        return "rate-limited: too many queries" if over else ""

    async def _hear_count(
        self, session: Session, sub_id: str, filters: tuple[Filter, ...]
    ) -> None:
        reason = self._query_refusal(session, filters)
        if reason:
            session.send(nip01.encode("CLOSED", sub_id, reason))
            return
        count, is_all = await self._reader.count(session.guest, filters, self._clock.now())
        if is_all:
            session.send(nip01.encode("COUNT", sub_id, {"count": count}))
        else:
            session.send(nip01.encode("CLOSED", sub_id, TOO_MUCH))

    async def _hear_req(self, session: Session, sub_id: str, filters: tuple[Filter, ...]) -> None:
        reason = self._query_refusal(session, filters) or self._subscribe(session, sub_id, filters)
        if reason:
            session.send(nip01.encode("CLOSED", sub_id, reason))
            return
        # NIP-17 asks relays to serve gift wraps only to whom they are for; without AUTH support in a
        # client that would make it deaf, and a wrap tells nothing but its receiver. So they are served.
        rows, is_all = await self._reader.find(
            session.guest, filters, self._limits.max_limit, self._clock.now()
        )
        await self._send_stored(session, sub_id, rows)
        if is_all:
            session.send(nip01.encode("EOSE", sub_id))
            return
        # The newest was sent, but not all of it: an EOSE would say that there is no more.
        self._live.drop(session, session.guest, sub_id)
        session.send(nip01.encode("CLOSED", sub_id, TOO_MUCH))

    def _subscribe(self, session: Session, sub_id: str, filters: tuple[Filter, ...]) -> str:
        open_now = self._live.of(session)
        if sub_id not in open_now and len(open_now) >= self._limits.max_subscriptions:
            return "rate-limited: too many subscriptions"
        fits = self._live.add(session, session.guest, sub_id, filters)
        return "" if fits else "rate-limited: too many filters, or values in them, at once"

    async def _send_stored(self, session: Session, sub_id: str, rows: list[Row]) -> None:
        name = orjson.dumps(sub_id)
        async with aclosing(self._reader.texts(session.guest, rows)) as chunks:
            async for texts in chunks:
                for text in texts:
                    session.send(b'["EVENT",' + name + b"," + text + b"]")
                # What is stored may be more than the queue holds: wait for the reader, and read no more
                # of its messages meanwhile.
                if session.websocket.queued_bytes > self._limits.max_queued_bytes // 4:
                    await session.websocket.wait_drained()

    def _challenge(self, session: Session) -> None:
        if not session.challenged:
            session.challenged = True
            session.send(nip01.encode("AUTH", session.challenge))

    def _hear_auth(self, session: Session, event: Event) -> None:
        reason = self._check_rate(session, event, self._clock.now())
        if reason or len(session.pubkeys) >= MAX_PUBKEYS:
            session.send(
                nip01.encode("OK", event.id, False, reason or "rate-limited: too many keys")
            )
            return
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
        session.guest.events += 1
        over = session.guest.events > self._limits.events_per_minute
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

    def _check_for_us(self, session: Session, event: Event, now: int) -> str:
        # Who left something here may delete it; the store knows.
        if self._is_for_us(event) or event.kind == kinds.DELETION:
            return ""
        return NOT_KEPT


_CHECKS = (
    RelayServer._check_rate,  # noqa: SLF001 - the table of this class's own checks
    RelayServer._check_size,  # noqa: SLF001
    RelayServer._check_time,  # noqa: SLF001
    RelayServer._check_protected,  # noqa: SLF001
    RelayServer._check_for_us,  # noqa: SLF001
)
