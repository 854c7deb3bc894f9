"""One relay, for as long as we want it: connect, subscribe, publish, and start over when it breaks.

Rules, each learnt from a way in which relays fail:

- A connection that says nothing is dead: silence is answered with a ping, silence after that with
  a reconnect, after a back-off with jitter so that a fleet does not return all at once.
- A subscription outlives connections. ``CLOSED`` is never the end of it: it is sent again after a
  while (at once after an AUTH), and each time it is reported.
- ``since`` is told by the time that has passed since the last EOSE or event: never by the ``created_at``
  of a stranger, who could push it into the future and make us deaf, and never by what our own clock showed
  then, since it may have been set right meanwhile. What was asked while it was ahead is asked again.
- Nothing is dropped silently: events go to a bounded channel whose back-pressure reaches the relay.
"""

import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from enum import Enum

import structlog
import trio

from bot.clock import Clock
from bot.latch import Latch
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
    """A wish that outlives connections.

    ``back_s``: how far each request reaches back behind the last sign of life, for clocks that disagree and
    events that took their time; None asks for everything. ``heard_ms`` is boot time of that sign.
    """

    sub_id: str
    filters: tuple[Filter, ...]
    back_s: int | None
    heard_ms: int
    since: int | None = None

    def next_since(self, now: int, boot_ms: int) -> int | None:
        """What to ask for now: seconds, by a clock that may have been set since."""
        if self.back_s is None:
            return None
        return max(0, now - (boot_ms - self.heard_ms) // 1_000 - self.back_s)


class _Waiting:
    """Somebody who waits for an OK."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.published = Published(Outcome.TIMEOUT)


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
        self._up = Latch()
        self._subscriptions: dict[str, Subscription] = {}
        self._awaiting_ok: defaultdict[str, list[_Waiting]] = defaultdict(list)
        self._nursery: trio.Nursery | None = None
        self._resubscribing: set[str] = set()
        self._delivering = False
        self._answered_challenge: str | None = None

    async def wait_connected(self) -> None:
        await self._up.wait()

    def subscribe(
        self, sub_id: str, filters: tuple[Filter, ...], *, back_s: int | None = None
    ) -> None:
        """Keep this subscription open; with ``back_s``, each request goes on where we left off."""
        subscription = Subscription(sub_id, filters, back_s, self._clock.boot_ms())
        self._subscriptions[sub_id] = subscription
        self._send_req(subscription)

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
        if not self._send(nip01.encode_publish(event)):
            return Published(Outcome.NOT_CONNECTED)
        waiting = _Waiting()
        # Several may wait for one OK: the same event may be on its way twice.
        self._awaiting_ok[event.id].append(waiting)
        try:
            with trio.move_on_after(self._policy.ok_timeout_s):
                await waiting.answered.wait()
            return waiting.published
        finally:
            self._awaiting_ok[event.id].remove(waiting)
            if not self._awaiting_ok[event.id]:
                del self._awaiting_ok[event.id]

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
            self._up.open()
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
        self._up.shut()
        for event_id in self._awaiting_ok:
            self._answer(event_id, Published(Outcome.NOT_CONNECTED, "connection lost"))

    async def _heartbeat(self, websocket: Websocket, scope: trio.CancelScope) -> None:
        while True:
            await trio.sleep(self._policy.heartbeat_s)
            self._ask_again_after_a_clock_step()
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
            case nip01.OkMessage(event_id):
                self._hear_ok(event_id, message)
            case nip01.EoseMessage(sub_id):
                if sub_id in self._subscriptions:
                    self._touch(self._subscriptions[sub_id])
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

    def _hear_ok(self, event_id: str, message: nip01.OkMessage) -> None:
        outcome = Outcome.ACCEPTED if message.arrived else Outcome.REJECTED
        self._answer(event_id, Published(outcome, message.reason[:200]))

    def _answer(self, event_id: str, published: Published) -> None:
        for waiting in self._awaiting_ok.get(event_id, ()):
            if not waiting.answered.is_set():
                waiting.published = published
                waiting.answered.set()

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
        subscription.heard_ms = self._clock.boot_ms()

    def _send_req(self, subscription: Subscription) -> None:
        filters = subscription.filters
        since = subscription.next_since(self._clock.now(), self._clock.boot_ms())
        subscription.since = since
        if since is not None:
            filters = tuple(replace(f, since=max(since, f.since or 0)) for f in filters)
        self._send(nip01.encode_req(subscription.sub_id, filters))

    def _ask_again_after_a_clock_step(self) -> None:
        """A relay holds back what is older than ``since``, also live: one in the future makes us deaf."""
        for subscription in self._subscriptions.values():
            if subscription.since is not None and subscription.since > self._clock.now():
                log.warning("our clock was set back", relay=self.url, sub_id=subscription.sub_id)
                self._send_req(subscription)

    def _send(self, text: bytes) -> bool:
        if self._websocket is None:
            return False
        with suppress(WebsocketGone):
            self._websocket.send(text)
            return True
        return False
