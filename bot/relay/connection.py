"""One relay, for as long as we want it: connect, subscribe, publish, and start over when it breaks.

Rules, each learnt from a way in which relays fail:

- A connection that says nothing is dead: silence is answered with a ping, silence after that with
  a reconnect, after a back-off with jitter so that a fleet does not return all at once.
- A subscription outlives connections. ``CLOSED`` is never the end of it: it is sent again after a
  while (at once after an AUTH), and each time it is reported.
- After a reconnect, ``since`` comes from *our* clock at the time of the last EOSE or event, never from
  the ``created_at`` of a stranger, who could push it into the future and make us deaf.
- Nothing is dropped silently: events go to a bounded channel whose back-pressure reaches the relay.
"""

import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from enum import Enum

import structlog
import trio

from bot.clock import Clock
from bot.relay.websocket import Websocket, WebsocketGone, connect
from nips import nip01, nip42
from nips.errors import BadMessage
from nips.event import Event, VerifiedEvent
from nips.filters import Filter
from nips.keys import SecretKey

log = structlog.get_logger()


@dataclass(frozen=True)
class RelayPolicy:
    """Patience and bounds of one connection; times in seconds."""

    heartbeat_s: float = 20
    pong_s: float = 10
    backoff_first_s: float = 0.5
    backoff_most_s: float = 60
    resubscribe_s: float = 5
    ok_timeout_s: float = 5
    # How far a cursor reaches back behind the last sign of life, for clocks that disagree.
    overlap_s: int = 120
    max_message_bytes: int = 1024 * 1024
    max_queued_bytes: int = 4 * 1024 * 1024


class Outcome(Enum):
    """What became of a published event at one relay."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    TIMEOUT = "timeout"
    NOT_CONNECTED = "not connected"


@dataclass(frozen=True)
class Published:
    """An outcome with the relay's own words."""

    outcome: Outcome
    reason: str = ""


@dataclass
class Subscription:
    """A wish that outlives connections. ``cursor`` is our clock when it last heard anything."""

    sub_id: str
    filters: tuple[Filter, ...]
    resume: bool
    cursor: int | None = None
    eose: trio.Event = field(default_factory=trio.Event)


Deliver = Callable[[str, str, Event], Awaitable[None]]


class RelayConnection:
    """Run `run` in a nursery; everything else may be called at any time."""

    def __init__(
        self,
        url: str,
        clock: Clock,
        deliver: Deliver,
        auth_key: SecretKey | None = None,
        policy: RelayPolicy = RelayPolicy(),
    ) -> None:
        self.url = url
        self._clock = clock
        self._deliver = deliver
        self._auth_key = auth_key
        self._policy = policy
        self._websocket: Websocket | None = None
        self._up = trio.Event()
        self._subscriptions: dict[str, Subscription] = {}
        self._awaiting_ok: dict[str, tuple[trio.Event, list[Published]]] = {}
        self._nursery: trio.Nursery | None = None
        self._resubscribing: set[str] = set()
        self._delivering = False
        self._answered_challenge: str | None = None

    async def wait_connected(self) -> None:
        await self._up.wait()

    def subscribe(
        self, sub_id: str, filters: tuple[Filter, ...], *, resume: bool = True
    ) -> Subscription:
        """Keep this subscription open; with ``resume``, reconnects continue where we left off."""
        subscription = Subscription(sub_id, filters, resume)
        self._subscriptions[sub_id] = subscription
        self._send_req(subscription)
        return subscription

    def unsubscribe(self, sub_id: str) -> None:
        if self._subscriptions.pop(sub_id, None) is not None:
            self._send(nip01.encode("CLOSE", sub_id))

    async def publish(self, event: VerifiedEvent, *, wait_ok: bool = True) -> Published:
        """Send an event; never waits for a connection, and for the OK only so long."""
        if self._websocket is None:
            return Published(Outcome.NOT_CONNECTED)
        if not wait_ok:
            sent = self._send(nip01.encode_publish(event))
            return Published(Outcome.ACCEPTED if sent else Outcome.NOT_CONNECTED)
        published = await self._publish_once(event)
        if published.reason.startswith("auth-required:") and self._auth_key is not None:
            # The challenge came just before; its answer is on its way, so the second try counts.
            await trio.sleep(self._policy.backoff_first_s)
            published = await self._publish_once(event)
        return published

    async def _publish_once(self, event: VerifiedEvent) -> Published:
        answered, outcomes = trio.Event(), list[Published]()
        self._awaiting_ok[event.id] = (answered, outcomes)
        try:
            if not self._send(nip01.encode_publish(event)):
                return Published(Outcome.NOT_CONNECTED)
            with trio.move_on_after(self._policy.ok_timeout_s):
                await answered.wait()
            return outcomes[0] if outcomes else Published(Outcome.TIMEOUT)
        finally:
            self._awaiting_ok.pop(event.id, None)

    async def run(self) -> None:
        """Connect again and again, until cancelled."""
        backoff_s = self._policy.backoff_first_s
        while True:
            started = trio.current_time()
            try:
                await self._run_once()
                reason = "the relay closed the connection"
            except WebsocketGone as gone:
                reason = str(gone)
            except Exception:
                # Whatever one relay brings about: it costs that connection and nothing else.
                log.exception("relay connection failed", relay=self.url)
                reason = "a surprise, logged above"
            finally:
                self._down()
            if trio.current_time() - started > self._policy.backoff_most_s:
                backoff_s = self._policy.backoff_first_s
            log.info("relay lost", relay=self.url, reason=reason, retry_s=round(backoff_s, 1))
            await trio.sleep(backoff_s * (0.5 + secrets.randbelow(1000) / 1000))
            backoff_s = min(backoff_s * 2, self._policy.backoff_most_s)

    async def _run_once(self) -> None:
        limits = self._policy
        async with (
            connect(
                self.url,
                max_message_bytes=limits.max_message_bytes,
                max_queued_bytes=limits.max_queued_bytes,
            ) as websocket,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(websocket.run_writer)
            nursery.start_soon(self._heartbeat, websocket, nursery.cancel_scope)
            self._websocket, self._nursery = websocket, nursery
            self._up.set()
            for subscription in self._subscriptions.values():
                self._send_req(subscription)
            async with aclosing(websocket.messages()) as messages:
                async for message in messages:
                    await self._hear(message)
            nursery.cancel_scope.cancel()

    def _down(self) -> None:
        self._websocket, self._nursery = None, None
        self._delivering = False
        self._resubscribing.clear()
        self._answered_challenge = None
        self._up = trio.Event()
        for answered, outcomes in self._awaiting_ok.values():
            outcomes.append(Published(Outcome.NOT_CONNECTED, "connection lost"))
            answered.set()

    async def _heartbeat(self, websocket: Websocket, scope: trio.CancelScope) -> None:
        while True:
            await trio.sleep(self._policy.heartbeat_s)
            # While our own consumer holds up the reading, silence says nothing about the relay.
            if (
                self._delivering
                or trio.current_time() - websocket.last_heard < self._policy.heartbeat_s
            ):
                continue
            pinged = trio.current_time()
            websocket.ping()
            await trio.sleep(self._policy.pong_s)
            if websocket.last_heard < pinged and not self._delivering:
                log.warning("relay is silent", relay=self.url)
                scope.cancel()

    async def _hear(self, frame: bytes) -> None:
        try:
            message = nip01.decode_relay_untrusted(frame)
        except BadMessage as error:
            log.info("relay talks nonsense", relay=self.url, reason=str(error))
            return
        match message:
            case nip01.EventMessage(sub_id, event):
                await self._hear_event(sub_id, event)
            case nip01.OkMessage(event_id, accepted, reason):
                self._hear_ok(event_id, accepted=accepted, reason=reason)
            case nip01.EoseMessage(sub_id):
                if sub_id in self._subscriptions:
                    self._touch(self._subscriptions[sub_id])
                    self._subscriptions[sub_id].eose.set()
            case nip01.ClosedMessage(sub_id, reason):
                self._hear_closed(sub_id, reason)
            case nip01.AuthChallenge(challenge):
                self._answer_challenge(challenge)
            case nip01.NoticeMessage(text):
                log.info("relay notice", relay=self.url, text=text[:200])
            case nip01.CountResult():
                pass

    async def _hear_event(self, sub_id: str, event: Event) -> None:
        subscription = self._subscriptions.get(sub_id)
        # A relay may send what nobody asked for; only what our own filter admits is ours.
        if subscription is None or not any(f.matches(event) for f in subscription.filters):
            return
        self._touch(subscription)
        self._delivering = True
        await self._deliver(self.url, sub_id, event)
        self._delivering = False

    def _hear_ok(self, event_id: str, *, accepted: bool, reason: str) -> None:
        if event_id in self._awaiting_ok:
            answered, outcomes = self._awaiting_ok[event_id]
            # NIP-01: a duplicate has arrived, whatever the flag says.
            arrived = accepted or reason.startswith("duplicate:")
            outcomes.append(
                Published(Outcome.ACCEPTED if arrived else Outcome.REJECTED, reason[:200])
            )
            answered.set()

    def _hear_closed(self, sub_id: str, reason: str) -> None:
        subscription = self._subscriptions.get(sub_id)
        if subscription is None or self._nursery is None or sub_id in self._resubscribing:
            return
        self._resubscribing.add(sub_id)
        log.warning(
            "relay closed a subscription", relay=self.url, sub_id=sub_id, reason=reason[:200]
        )
        self._nursery.start_soon(self._resubscribe_later, subscription)

    async def _resubscribe_later(self, subscription: Subscription) -> None:
        await trio.sleep(self._policy.resubscribe_s)
        self._resubscribing.discard(subscription.sub_id)
        if self._subscriptions.get(subscription.sub_id) is subscription:
            self._send_req(subscription)

    def _answer_challenge(self, challenge: str) -> None:
        if self._auth_key is None or challenge == self._answered_challenge:
            return
        self._answered_challenge = challenge
        self._send(
            nip01.encode_auth(nip42.answer(self._auth_key, self.url, challenge, self._clock.now()))
        )
        for subscription in self._subscriptions.values():
            self._send_req(subscription)

    def _touch(self, subscription: Subscription) -> None:
        subscription.cursor = self._clock.now()

    def _send_req(self, subscription: Subscription) -> None:
        filters = subscription.filters
        if subscription.resume and subscription.cursor is not None:
            since = subscription.cursor - self._policy.overlap_s
            filters = tuple(replace(f, since=max(since, f.since or 0)) for f in filters)
        self._send(nip01.encode_req(subscription.sub_id, filters))

    def _send(self, text: bytes) -> bool:
        if self._websocket is None:
            return False
        with suppress(WebsocketGone):
            self._websocket.send(text)
            return True
        return False
