"""Asking a NIP-47 wallet, and hearing it: requests, answers in time, answers that come late, notifications.

Where the wallet is may be known from the start, or be found while we run. No answer in time is None: the request may
still be carried out until it expires. What is asked with ``late`` is heard for as long as this process lives: the answer
to a payment may come after minutes, and is evidence.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog
import trio

from bot.relay.connection import RelayPolicy
from bot.relay.pool import Heard, RelayPool
from handlers.ports import Clock
from nips import kinds
from nips.errors import BadInput
from nips.event import Event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip47 import (
    WalletAbilities,
    WalletReply,
    WalletUri,
    build_request,
    open_reply_untrusted,
    parse_wallet_info,
)

log = structlog.get_logger()
SUB = "nwc"
REQUEST_VALID_S = 60
SLOW_CLOCK_S = 3_600
MAX_LATE = 1_000
OnReply = Callable[[WalletReply], None]


@dataclass(frozen=True)
class Whereabouts:
    """``key``: by which the wallet knows us. ``find`` returns once it is known where the wallet is."""

    key: SecretKey = field(repr=False)
    find: Callable[[], Awaitable[WalletUri]]


def known(uri: WalletUri) -> Whereabouts:
    """From the start."""

    async def find() -> WalletUri:
        return uri

    return Whereabouts(uri.key, find)


class NwcClient:
    """Run `run` in a nursery; ``notified`` is called with every notification of the wallet, still sealed."""

    def __init__(
        self,
        where: Whereabouts,
        clock: Clock,
        notified: Callable[[Event], None],
        *,
        answer_s: float,
        relay_policy: RelayPolicy,
    ) -> None:
        self.uri: WalletUri | None = None
        self._where = where
        self.abilities: WalletAbilities | None = None
        self.informed = trio.Event()
        self._informed_at = 0
        self._clock = clock
        self._notified = notified
        self._answer_s = answer_s
        self._pool = RelayPool(clock, auth_key=where.key, policy=relay_policy)
        self._waiting: dict[str, tuple[SecretKey, OnReply]] = {}
        self._late: OrderedDict[str, tuple[SecretKey, OnReply]] = OrderedDict()

    async def run(self) -> None:
        """Keep connected and listen, until cancelled."""
        self.uri = uri = await self._where.find()
        wallet = frozenset({uri.wallet_pubkey})
        answers = {
            kinds.WALLET_RESPONSE,
            kinds.WALLET_NOTIFICATION,
            kinds.WALLET_NOTIFICATION_NIP04,
        }
        # By author only: some wallets put no p tag on their answers. Whose clock is slow is heard as well: an
        # answer names its request by id, so its date says nothing.
        self._pool.subscribe(
            SUB, [Filter(authors=wallet, kinds=frozenset(answers))], back_s=SLOW_CLOCK_S
        )
        self._pool.subscribe(
            f"{SUB}-info", [Filter(authors=wallet, kinds=frozenset({kinds.WALLET_INFO}))]
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pool.run)
            for url in uri.relay_urls:
                self._pool.add(url)
            while True:
                self._hear(await self._pool.receive())

    async def ask(
        self,
        method: str,
        params: Mapping[str, object],
        owner: SecretKey | None = None,
        late: OnReply | None = None,
    ) -> WalletReply | None:
        """The wallet's answer, or None when there was none in time; ``late`` is given one that comes later."""
        if (uri := self.uri) is None:
            log.warning("there is no wallet yet", method=method)
            return None
        key = owner or self._where.key
        request = build_request(
            key,
            uri.wallet_pubkey,
            method,
            dict(params),
            now=self._clock.now(),
            valid_s=REQUEST_VALID_S,
            use_nip44=self.abilities is None or self.abilities.nip44,
        )
        answered, replies = trio.Event(), list[WalletReply]()

        def take(reply: WalletReply) -> None:
            replies.append(reply)
            answered.set()

        self._waiting[request.id] = (key, take)
        try:
            with trio.move_on_after(self._answer_s):
                await self._pool.publish(request, uri.relay_urls, wait_ok=False)
                await answered.wait()
        finally:
            del self._waiting[request.id]
            if late is not None and not replies:
                self._remember(request.id, key, late)
        if not replies:
            log.warning("wallet does not answer", method=method)
        return replies[0] if replies else None

    def _remember(self, request_id: str, key: SecretKey, late: OnReply) -> None:
        self._late[request_id] = (key, late)
        while len(self._late) > MAX_LATE:
            self._late.popitem(last=False)

    def _hear(self, heard: Heard) -> None:
        event = heard.event
        try:
            match event.kind:
                case kinds.WALLET_INFO:
                    self._hear_info(event)
                case kinds.WALLET_RESPONSE:
                    self._hear_reply(event)
                case _:
                    self._notified(event)
        except BadInput as error:
            log.info("wallet event ignored", reason=str(error))

    def _hear_info(self, event: Event) -> None:
        # An older one that a relay kept could take us back to NIP-04.
        if event.created_at >= self._informed_at:
            self.abilities, self._informed_at = parse_wallet_info(event), event.created_at
            self.informed.set()

    def _hear_reply(self, event: Event) -> None:
        request_id = event.tag("e") or ""
        waiting = self._waiting.get(request_id) or self._late.get(request_id)
        if waiting is not None:
            key, take = waiting
            take(open_reply_untrusted(key, event))
            self._late.pop(request_id, None)
