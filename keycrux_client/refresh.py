"""Keeps a key alive at the services: they forget it after 72 hours, and when they restart.

Before a service is given a value, it is asked what it holds. A value that is not of our key is never
overwritten: it may be the only one that opens somebody's state, ours from another life included.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from keycrux_client.client import EscrowClient
from keycrux_client.discovery import Service
from keycrux_client.protocol import GetReply, Got
from keycrux_client.shares import (
    BadStored,
    DiskKey,
    Head,
    Stored,
    decode_untrusted,
    encode,
    gather,
    split,
    threshold_for,
)

EVERY_S = 600
# Until the key is safe somewhere, try sooner.
RETRY_S = 60


@dataclass(frozen=True)
class Refreshed:
    """``conflicts``: services that hold something else and were left alone."""

    stored: tuple[str, ...]
    failed: tuple[str, ...]
    conflicts: tuple[str, ...]
    needed: int

    @property
    def is_safe(self) -> bool:
        """Whether enough services hold it for us to get it back."""
        return len(self.stored) >= max(1, self.needed)


class Keeper:
    """Stores one key, with the head of our state, at all services that are believed.

    ``forget``: the operator gave up whatever services hold for us.
    """

    def __init__(
        self,
        client: EscrowClient,
        find_services: Callable[[], Awaitable[Sequence[Service]]],
        key: DiskKey,
        head: Head,
        *,
        known_sets: frozenset[str] = frozenset(),
        forget: bool = False,
    ) -> None:
        self._client, self._find_services = client, find_services
        self._key, self._head, self._forget = key, head, forget
        # Splits of our key: a single share of one of them is ours, though it does not show it.
        self._known_sets = set(known_sets)
        self._shares: dict[str, Stored] = {}

    async def refresh(self) -> Refreshed:
        """Once, to every service found."""
        services = await self._find_services()
        held = await self._client.get_all(services)
        clear = [s for s in services if held[s].got is not Got.SILENT]
        foreign = {s.pubkey for s in clear if not self._may_replace(held[s], [*held.values()])}
        taking = [service for service in clear if service.pubkey not in foreign]
        took = await self._client.set_all(self._values(taking))
        stored = tuple(s.pubkey for s, done in took.items() if done)
        failed = tuple(s.pubkey for s in services if s.pubkey not in {*stored, *foreign})
        if stored:
            # Given up once is given up: from now on the rule holds without exception.
            self._forget = False
        return Refreshed(stored, failed, tuple(sorted(foreign)), threshold_for(len(taking)))

    def _may_replace(self, reply: GetReply, all_replies: Sequence[GetReply]) -> bool:
        if reply.got is Got.NONE or self._forget:
            return True
        value = _stored(reply)
        if value is None:
            return False
        if value.head.number > self._head.number:
            # Somebody with our key is ahead of us: we are the old one.
            return False
        return value.set_id in self._known_sets or self._is_ours(value, all_replies)

    def _is_ours(self, value: Stored, all_replies: Sequence[GetReply]) -> bool:
        """Whether this value, together with the others of its set, yields our key and no other."""
        others = [found for reply in all_replies if (found := _stored(reply)) is not None]
        members = [found for found in others if found.set_id == value.set_id]
        return {g.key for g in gather(members)} == {self._key}

    def _values(self, services: Sequence[Service]) -> dict[Service, str]:
        if not services:
            return {}
        if {s.pubkey for s in services} != self._shares.keys():
            # Shares of different splits do not mix: others get other shares, all of them.
            parts = map(decode_untrusted, split(self._key, self._head, len(services)))
            self._shares = {s.pubkey: part for s, part in zip(services, parts, strict=True)}
            self._known_sets |= {share.set_id for share in self._shares.values()}
        return {service: encode(self._shares[service.pubkey]) for service in services}


def _stored(reply: GetReply) -> Stored | None:
    if reply.got is not Got.HELD:
        return None
    try:
        return decode_untrusted(reply.data)
    except BadStored:
        return None
