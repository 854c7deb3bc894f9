"""Many relays as one: subscribe everywhere, hear each event once, publish with an outcome per relay.

This is where events of outer relays become verified ones: after the filter and the memory of what came
before, which cost little, and before anybody acts on them.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
import trio

from bot.clock import Clock
from bot.relay.connection import Published, RelayConnection, RelayPolicy
from nips.errors import BadEvent
from nips.event import Event, VerifiedEvent, verify_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.relay_url import normal_url

log = structlog.get_logger()
REMEMBERED_IDS = 20_000
QUEUE = 256


@dataclass(frozen=True)
class Heard:
    """An event, and the relay that was the first to bring it."""

    relay_url: str
    sub_id: str
    event: VerifiedEvent


class RelayPool:
    """Relays are added by URL, however it is spelt, and stay until the pool ends. Run `run` in a nursery."""

    def __init__(
        self,
        clock: Clock,
        auth_key: SecretKey | None = None,
        policy: RelayPolicy = RelayPolicy(),
    ) -> None:
        self._clock, self._auth_key, self._policy = clock, auth_key, policy
        self._connections: dict[str, RelayConnection] = {}
        self._subscriptions: dict[str, tuple[tuple[Filter, ...], int | None]] = {}
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._send_channel, self._receive_channel = trio.open_memory_channel[Heard](QUEUE)
        self._new, self._starting = trio.open_memory_channel[RelayConnection](1_000)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            async for connection in self._starting:
                nursery.start_soon(connection.run)

    def add(self, url: str) -> RelayConnection:
        """Connect to a relay and keep connected; a second call returns the same connection."""
        name = normal_url(url)
        if name not in self._connections:
            connection = RelayConnection(
                url, self._clock, self._deliver, self._auth_key, self._policy
            )
            self._connections[name] = connection
            for sub_id, (filters, back_s) in self._subscriptions.items():
                connection.subscribe(sub_id, filters, back_s=back_s)
            self._new.send_nowait(connection)
        return self._connections[name]

    @property
    def urls(self) -> frozenset[str]:
        """The relays that were added, as `normal_url` spells them."""
        return frozenset(self._connections)

    async def wait_connected(self) -> None:
        """Return as soon as one relay is connected."""
        async with trio.open_nursery() as nursery:

            async def wait_for(connection: RelayConnection) -> None:
                await connection.wait_connected()
                nursery.cancel_scope.cancel()

            for connection in self._connections.values():
                nursery.start_soon(wait_for, connection)

    def subscribe(
        self, sub_id: str, filters: Sequence[Filter], *, back_s: int | None = None
    ) -> None:
        """On every relay, now and later; for ``back_s`` see `Subscription`."""
        self._subscriptions[sub_id] = (tuple(filters), back_s)
        for connection in self._connections.values():
            connection.subscribe(sub_id, tuple(filters), back_s=back_s)

    async def receive(self) -> Heard:
        """The next event; each id once per subscription, whichever relays bring it."""
        return await self._receive_channel.receive()

    async def publish(
        self, event: VerifiedEvent, urls: Sequence[str] | None = None, *, wait_ok: bool = True
    ) -> dict[str, Published]:
        """To these relays (default: all), at the same time; the outcome of each."""
        outcomes: dict[str, Published] = {}

        async def to(url: str) -> None:
            outcomes[url] = await self.add(url).publish(event, wait_ok=wait_ok)

        async with trio.open_nursery() as nursery:
            for url in urls if urls is not None else list(self._connections):
                nursery.start_soon(to, url)
        return outcomes

    async def _deliver(self, url: str, sub_id: str, event: Event) -> None:
        # By id and signature: a forged copy with the same id must not hide the true event.
        seen = (sub_id, event.id + event.sig)
        if seen in self._seen:
            return
        try:
            verified = verify_event(event)
        except BadEvent as error:
            # Not remembered: forgeries must not push out what was heard.
            log.info("relay brings a forgery", relay=url, event_id=event.id, reason=str(error))
            return
        self._seen[seen] = None
        if len(self._seen) > REMEMBERED_IDS:
            self._seen.popitem(last=False)
        try:
            await self._send_channel.send(Heard(url, sub_id, verified))
        except trio.Cancelled:
            # Not delivered after all: the relay will send it again when it is back.
            self._seen.pop(seen, None)
            raise
