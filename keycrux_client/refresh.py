"""Keeps a key alive at the services: they forget it after 72 hours, and when they restart.

Three rules, whatever happens between any two lines:

- A service is asked before it is given anything, and a value that was not written with our key is never
  replaced: it may be the only one that opens somebody's state, ours from another life included.
- What stands under the fence of a later life of ours is never replaced, and tells us that we were overtaken (see `fence`).
- A value of ours gives way to a different one only while the others yield the key without it, and would
  still do so, together with the new one, if one of them were lost as well.

What a service took is read back: it counts when it is there, and as a vote only if it stood under our fence before. One that
was empty may have forgotten a promise to another life when it was restarted; it is filled, and votes the next time.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import trio

from keycrux_client.client import EscrowClient
from keycrux_client.discovery import Discovered, Service
from keycrux_client.fence import Holders, Voters
from keycrux_client.protocol import LIFE_S, GetReply, Got
from keycrux_client.recovery import stored_in
from keycrux_client.shares import DiskKey, Fence, Head, Split, Stored, encode, gather, to_store

EVERY_S = 600
# Until the key is safe somewhere, try sooner.
RETRY_S = 60
_NOTHING = Head(0, 0, "")


@dataclass(frozen=True)
class Refreshed:
    """``conflicts``: services that hold something that is not ours, or is ahead of us, and were left alone;
    ``ahead`` names those of them that hold what a later one of us wrote, with our key: then nothing was stored anywhere.
    ``members``: how many different parts voted for our head; ``needed``: how many must. ``is_outdated``: those
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

    ``voters``: whom the checkpoint that ours is made from names, and ``base`` its head; none where ours is the first with
    this key. ``holders``: who had which part before. ``forget``: the operator gave up whatever services hold for us.
    """

    def __init__(
        self,
        client: EscrowClient,
        find_services: Callable[[], Awaitable[Discovered]],
        key: DiskKey,
        split: Split,
        fence: Fence,
        holders: Holders | None = None,
        *,
        voters: Voters | None = None,
        base: Head = _NOTHING,
        forget: bool = False,
    ) -> None:
        self._client, self._find_services = client, find_services
        self._key, self._split, self._fence = key, split, fence
        self._voters, self._base, self._forget = voters, base, forget
        self._head, self._named = _NOTHING, Voters(split.threshold)
        # Who has which part, and when we last heard of that; one that is silent now may still have its.
        self._holders: dict[str, tuple[int, int]] = dict(holders or {})
        self._services: tuple[Service, ...] = ()
        # Two that store at once would take each other for somebody else.
        self._storing = trio.Lock()

    @property
    def head(self) -> Head:
        """What is stored with the key from now on."""
        return self._head

    @property
    def holders(self) -> Holders:
        """For the next checkpoint, and so for the next life, which must not give a part to a second service."""
        return dict(self._holders)

    async def meet(self) -> None:
        """Find services, and give each a part: it has a vote once a checkpoint that names it is anchored."""
        self._services = (await self._find_services()).services
        replies = await self._client.get_all(self._services)
        held = {s: stored_in(reply) for s, reply in replies.items()}
        self._assign([s for s in held if self._may_replace(replies[s], held[s])], held)

    async def refresh(self) -> Refreshed:
        """Once, to every service that is found and answers."""
        self._services = (await self._find_services()).services
        return await self._store_at(self._services)

    async def find_ahead(self) -> tuple[str, ...]:
        """Services where a later one of us has taken its turn, among those that were found last."""
        replies = await self._client.get_all(self._services)
        return tuple(s.pubkey for s, reply in replies.items() if self._is_ahead(stored_in(reply)))

    def offer(self, head: Head, holders: Holders) -> None:
        """From now on this head is stored; its checkpoint says who has which part."""
        self._head, self._named = head, Voters(self._split.threshold, holders)

    async def anchor(self, head: Head, holders: Holders) -> Refreshed:
        """Store a newer head, at the services that were found last: this must be quick. Without ``is_safe`` it is not
        anchored; ``ahead`` names services where a later one of us has taken its turn."""
        async with self._storing:
            self.offer(head, holders)
        return await (self._store_at(self._services) if self._services else self.refresh())

    async def _store_at(self, services: Sequence[Service]) -> Refreshed:
        async with self._storing:
            return await self._store_all(services)

    async def _store_all(self, services: Sequence[Service]) -> Refreshed:
        replies = await self._client.get_all(services)
        held = {s: stored_in(reply) for s, reply in replies.items()}
        answering = [s for s in services if replies[s].got is not Got.SILENT]
        ahead = [s for s in answering if self._is_ahead(held[s])]
        foreign = [s for s in answering if not self._may_replace(replies[s], held[s])]
        wanted = self._wanted([s for s in answering if s not in foreign and not ahead], held)
        before = dict(held)
        texts = {s: replies[s].data for s in answering}
        confirmed = await self._store(wanted, held, texts)
        if confirmed:
            # Given up once is given up: from now on the rule holds without exception.
            self._forget = False
        failed = [s for s in wanted if s not in confirmed]
        old = [value for s in failed if (value := before[s]) is not None]
        members, needed = self._votes({s.pubkey for s in confirmed if self._may_vote(before[s])})
        done = Refreshed(
            stored=tuple(s.pubkey for s in confirmed),
            failed=tuple(s.pubkey for s in failed),
            conflicts=tuple(s.pubkey for s in foreign),
            ahead=tuple(s.pubkey for s in ahead),
            members=members,
            needed=needed,
            is_outdated=any(value.head != self._head for value in old) and self._yields_key(old),
        )
        if done.is_safe:
            self._base, self._voters = self._head, self._named
        return done

    def _may_vote(self, value: Stored | None) -> bool:
        return self._voters is None or (value is not None and value.fence == self._fence)

    def _votes(self, pubkeys: Set[str]) -> tuple[int, int]:
        """How many parts voted, and how many must: of those who decided before, and of those whom this head names."""
        both = (self._voters or self._named, self._named)
        most = max(both, key=lambda voters: voters.lack(pubkeys))
        return most.count(pubkeys), most.threshold

    def _may_replace(self, reply: GetReply, value: Stored | None) -> bool:
        if reply.got is Got.NONE or self._forget:
            return True
        if value is None or not value.is_authentic(self._key) or self._is_ahead(value):
            return False
        return value.fence == self._fence or value.fence.epoch < self._fence.epoch

    def _is_ahead(self, value: Stored | None) -> bool:
        """Whether a later one of us has its turn there; or an earlier one went on after we looked, at a service that forgot
        our fence."""
        if value is None or value.fence == self._fence or not value.is_authentic(self._key):
            return False
        return value.fence.epoch > self._fence.epoch or self._base.is_behind(value.head)

    def _wanted(
        self, services: Sequence[Service], held: Mapping[Service, Stored | None]
    ) -> dict[Service, Stored]:
        parts = self._assign(services, held)
        return {
            service: to_store(self._key, self._split, index, self._head, self._fence)
            for service, index in parts.items()
        }

    def _assign(
        self, services: Sequence[Service], held: Mapping[Service, Stored | None]
    ) -> dict[Service, int]:
        """Which part each service is to keep: its own, or one that nobody else has."""
        now = self._client.clock.now()
        self._holders = {p: at for p, at in self._holders.items() if now - at[1] < LIFE_S}
        parts: dict[Service, int] = {}
        # Those that hold a part keep it; only then are the others given what is left.
        for choose in (self._kept_part, self._free_part):
            for service in (s for s in services if s not in parts):
                index = choose(service, held[service])
                if index is not None:
                    self._holders[service.pubkey] = (index, now)
                    parts[service] = index
        return parts

    def _kept_part(self, service: Service, value: Stored | None) -> int | None:
        kept, _ = self._holders.get(service.pubkey, (None, 0))
        if kept is None and value is not None and value.set_id == self._split.set_id:
            kept = value.index
        return kept if kept not in self._taken(service) else None

    def _free_part(self, service: Service, _: Stored | None) -> int | None:
        taken = self._taken(service)
        return next((index for index in range(len(self._split.parts)) if index not in taken), None)

    def _taken(self, service: Service) -> set[int]:
        """Parts of others; a whole copy is for everybody."""
        others = {index for p, (index, _) in self._holders.items() if p != service.pubkey}
        return others if self._split.threshold > 1 else set()

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
