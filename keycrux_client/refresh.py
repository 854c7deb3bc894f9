"""Keeps a key alive at the services: they forget it after 72 hours, and when they restart.

Three rules, whatever happens between any two lines:

- A service is asked before it is given anything, and a value that was not written with our key is never
  replaced: it may be the only one that opens somebody's state, ours from another life included.
- A head gives way only to one that was made from it: what another one of us wrote after we looked is ahead of us, whatever
  its number, until we have looked at it.
- A value of ours gives way to a different one only while the others yield the key without it, and would
  still do so, together with the new one, if one of them were lost as well.

What a service took is read back: it counts when it is there.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from keycrux_client.client import EscrowClient
from keycrux_client.discovery import Discovered, Service
from keycrux_client.protocol import LIFE_S, GetReply, Got
from keycrux_client.recovery import stored_in
from keycrux_client.shares import DiskKey, Head, Split, Stored, encode, gather, to_store

EVERY_S = 600
# Until the key is safe somewhere, try sooner.
RETRY_S = 60
_NOTHING = Head(0, 0, "")


@dataclass(frozen=True)
class Refreshed:
    """``conflicts``: services that hold something that is not ours, or is ahead of us, and were left alone;
    ``ahead`` names those of them that hold what another one of us wrote, with our key.
    ``members``: how many different parts are kept; ``needed``: how many yield the key. ``is_outdated``: those
    that failed would yield it as well, with an older head than ours."""

    stored: tuple[str, ...]
    failed: tuple[str, ...]
    conflicts: tuple[str, ...]
    ahead: tuple[str, ...]
    members: int
    needed: int
    is_outdated: bool

    @property
    def is_safe(self) -> bool:
        """We can get the key back, and what we saw cannot be used to bring back an older state."""
        return self.members >= self.needed and not self.is_outdated


class Keeper:
    """Stores one key, with the head of our state, at all services that are believed.

    ``base``: the head that ours was made from, and that alone, or an older one, may be replaced; None where ours is the
    first with this key. ``holders``: who had which part before. ``forget``: the operator gave up whatever services hold for us.
    """

    def __init__(
        self,
        client: EscrowClient,
        find_services: Callable[[], Awaitable[Discovered]],
        key: DiskKey,
        split: Split,
        head: Head,
        holders: Mapping[str, tuple[int, int]] | None = None,
        *,
        base: Head | None = None,
        forget: bool = False,
    ) -> None:
        # What a service may hold of ours: the last head that a majority took, and what was offered to some since.
        self._base, self._offered = base or _NOTHING, {head.digest}
        self._client, self._find_services = client, find_services
        self._key, self._split, self._head, self._forget = key, split, head, forget
        # Who has which part, and when we last heard of that; one that is silent now may still have its.
        self._indices: dict[str, tuple[int, int]] = dict(holders or {})
        self._services: tuple[Service, ...] = ()
        # Two that store at once would take each other for somebody else.
        self._storing = trio.Lock()

    @property
    def head(self) -> Head:
        """What is stored with the key from now on."""
        return self._head

    @property
    def holders(self) -> dict[str, tuple[int, int]]:
        """Service → the part it has, and when it was last heard of: for the next life, which must not give a part to
        a second one."""
        return dict(self._indices)

    async def refresh(self) -> Refreshed:
        """Once, to every service that is found and answers."""
        self._services = (await self._find_services()).services
        return await self._store_at(self._services)

    async def find_ahead(self) -> tuple[str, ...]:
        """Services that hold a head which another one of us wrote after ours, among those that were found last."""
        replies = await self._client.get_all(self._services)
        held = {service: stored_in(reply) for service, reply in replies.items()}
        return tuple(
            service.pubkey
            for service, value in held.items()
            if self._is_ours(value) and not self._may_replace(replies[service], value)
        )

    async def anchor(self, head: Head) -> Refreshed:
        """Store a newer head, at the services that were found last: this must be quick. Without ``is_safe`` it is not
        anchored; ``ahead`` names services that hold a head of another one of us."""
        async with self._storing:
            if self._head.is_behind(head):
                self._head = head
                self._offered.add(head.digest)
        return await (self._store_at(self._services) if self._services else self.refresh())

    async def _store_at(self, services: Sequence[Service]) -> Refreshed:
        async with self._storing:
            return await self._store_all(services)

    async def _store_all(self, services: Sequence[Service]) -> Refreshed:
        replies = await self._client.get_all(services)
        held = {s: stored_in(reply) for s, reply in replies.items()}
        answering = [s for s in services if replies[s].got is not Got.SILENT]
        foreign = [s for s in answering if not self._may_replace(replies[s], held[s])]
        wanted = self._wanted([s for s in answering if s not in foreign], held)
        before = dict(held)
        texts = {s: replies[s].data for s in answering}
        confirmed = await self._store(wanted, held, texts)
        if confirmed:
            # Given up once is given up: from now on the rule holds without exception.
            self._forget = False
        failed = [s for s in wanted if s not in confirmed]
        old = [value for s in failed if (value := before[s]) is not None]
        done = Refreshed(
            stored=tuple(s.pubkey for s in confirmed),
            failed=tuple(s.pubkey for s in failed),
            conflicts=tuple(s.pubkey for s in foreign),
            ahead=tuple(s.pubkey for s in foreign if self._is_ours(held[s])),
            members=len({wanted[s].index for s in confirmed}),
            needed=self._split.threshold,
            is_outdated=any(value.head != self._head for value in old) and self._yields_key(old),
        )
        if done.is_safe and not done.ahead:
            self._base, self._offered = self._head, {self._head.digest}
        return done

    def _may_replace(self, reply: GetReply, value: Stored | None) -> bool:
        if reply.got is Got.NONE or self._forget:
            return True
        if value is None or not self._is_ours(value):
            return False
        # Else written with our key, and after what ours was made from: another one of us is running.
        return value.head.digest in self._offered or not self._base.is_behind(value.head)

    def _is_ours(self, value: Stored | None) -> bool:
        return value is not None and value.is_authentic(self._key)

    def _wanted(
        self, services: Sequence[Service], held: Mapping[Service, Stored | None]
    ) -> dict[Service, Stored]:
        """Which part each service is to keep: its own, or one that nobody else has."""
        now = self._client.clock.now()
        self._indices = {p: at for p, at in self._indices.items() if now - at[1] < LIFE_S}
        # Those that hold a part keep it; only then are the others given what is left.
        wanted: dict[Service, Stored] = {}
        for service in sorted(services, key=lambda s: held[s] is None):
            index = self._index(service, held[service])
            if index is not None:
                self._indices[service.pubkey] = (index, now)
                wanted[service] = to_store(self._key, self._split, index, self._head)
        return wanted

    def _index(self, service: Service, value: Stored | None) -> int | None:
        if self._split.threshold == 1:
            return 0
        taken = {index for p, (index, _) in self._indices.items() if p != service.pubkey}
        kept, _ = self._indices.get(service.pubkey, (None, 0))
        if kept is None and value is not None and value.set_id == self._split.set_id:
            kept = value.index
        if kept is not None and kept not in taken:
            return kept
        return next((index for index in range(len(self._split.parts)) if index not in taken), None)

    async def _store(
        self,
        wanted: Mapping[Service, Stored],
        held: dict[Service, Stored | None],
        held_text: Mapping[Service, str],
    ) -> list[Service]:
        """Where nothing is lost by it at the same time, the rest one by one; those that confirm."""
        confirmed: list[Service] = []

        async def store(service: Service) -> None:
            text = encode(wanted[service])
            took = await self._client.set(service, text, expected=held_text.get(service))
            if took and (await self._client.get(service)).data == text:
                held[service] = wanted[service]
                confirmed.append(service)

        same = [s for s in wanted if self._is_same_part(held[s], wanted[s])]
        async with trio.open_nursery() as nursery:
            for service in same:
                nursery.start_soon(store, service)
        for service in (s for s in wanted if s not in same):
            if self._is_spare(service, wanted[service], held):
                # Until it is read back, nobody knows which of the two it has.
                held[service] = None
                await store(service)
        return confirmed

    def _is_same_part(self, value: Stored | None, wanted: Stored) -> bool:
        return value is None or self._forget or value.secret == wanted.secret

    def _is_spare(
        self, service: Service, new: Stored, held: Mapping[Service, Stored | None]
    ) -> bool:
        """Whether what this one holds may be given up for ``new``."""
        mine = held[service]
        others = [value for other, value in held.items() if value is not None and other != service]
        if mine is not None and mine.threshold > 1 and mine.secret in {o.secret for o in others}:
            # The same share twice is worth one.
            return True
        return self._yields_key(others) and all(
            self._yields_key([new, *(other for other in others if other is not lost)])
            for lost in others
        )

    def _yields_key(self, values: Sequence[Stored]) -> bool:
        return self._key in [found.key for found in gather(values)]
