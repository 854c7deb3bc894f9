"""Keeps a key alive at the services: they forget it after 72 hours, and when they restart.

Two rules, whatever happens between any two lines:

- A service is asked before it is given anything, and a value that was not written with our key is never
  replaced: it may be the only one that opens somebody's state, ours from another life included.
- What stands under the fence of a later life of ours is never replaced, and tells us that we were overtaken (see `fence`).

When a key is split anew, or gives way to another one, each value first gets a part of both; only when enough services have
both, the former ones leave. So whichever of two writes came through, and whoever is lost then, one of the two can be had.

What a service took is read back: it counts when it is there, and as a vote only if it stood under our fence before. One that
was empty may have forgotten a promise to another life when it was restarted; it is filled, and votes the next time.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import trio

from keycrux_client.allotment import Allotment
from keycrux_client.client import EscrowClient
from keycrux_client.discovery import Discovered, Service
from keycrux_client.fence import Holders, Voters, fewest
from keycrux_client.protocol import GetReply, Got
from keycrux_client.recovery import stored_in, values_in
from keycrux_client.shares import (
    DiskKey,
    Fence,
    Head,
    Part,
    Split,
    Stored,
    encode,
    fitting_split,
    gather,
    to_store,
)

EVERY_S = 600
# Until the key is safe somewhere, try sooner.
RETRY_S = 60
_NOTHING = Head(0, 0, "")
Held = Mapping[Service, Stored | None]


@dataclass(frozen=True)
class Ahead:
    """Services where a later one of us, with our key, has its turn. ``has_begun``: it wrote state of its own at one of them.
    Until then it may have come no further than its first step, and be gone."""

    pubkeys: tuple[str, ...] = ()
    has_begun: bool = False

    def __bool__(self) -> bool:
        return bool(self.pubkeys)


@dataclass(frozen=True)
class Refreshed:
    """``conflicts``: services that hold something that is not ours, or is ahead of us, and were left alone; with any that is
    ``ahead``, nothing was stored anywhere.
    ``members``: how many different parts voted for our head; ``needed``: how many must. ``is_outdated``: those
    that failed would yield it as well, with an older head than ours."""

    stored: tuple[str, ...]
    failed: tuple[str, ...]
    conflicts: tuple[str, ...]
    ahead: Ahead
    members: int
    needed: int
    is_outdated: bool

    @property
    def is_safe(self) -> bool:
        """We can get the key back, and what we saw cannot be used to bring back an older state."""
        return self.members >= self.needed and not self.is_outdated


@dataclass(frozen=True)
class Renewal:
    """Another split, or another key as well, that services have beside the present one."""

    key: DiskKey
    allotment: Allotment


class Keeper:
    """Stores one key, with the head of our state, at all services that are believed.

    ``deciders``: who must agree before those whom our checkpoints name decide alone, and ``base`` the head that ours is made
    from; none where ours is the first with this key. ``holders``: who had which part before. ``former``: other keys of ours, whose values may give way.
    ``forget``: the operator gave up whatever services hold for us.
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
        deciders: Sequence[Voters] = (),
        base: Head = _NOTHING,
        former: Sequence[DiskKey] = (),
        forget: bool = False,
    ) -> None:
        self._client, self._find_services = client, find_services
        self._key, self._fence, self._former = key, fence, tuple(former)
        self._allotment = Allotment(split, holders)
        self._renewal: Renewal | None = None
        self._deciders, self._base, self._forget = tuple(deciders), base, forget
        self._is_first = not deciders
        self._head, self._named = _NOTHING, Voters(split.threshold)
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
        return self._allotment.holders

    @property
    def deciders(self) -> tuple[Voters, ...]:
        """For the next checkpoint: a life that goes on from it must ask these as well, for it may never have been anchored."""
        return self._deciders

    async def meet(self) -> None:
        """Find services, and give each a part: it has a vote once a checkpoint that names it is anchored."""
        self._services = (await self._find_services()).services
        replies = await self._client.get_all(self._services)
        self._parts(self._ours(replies, _held(replies)))

    async def refresh(self) -> Refreshed:
        """Once, to every service that is found and answers."""
        self._services = (await self._find_services()).services
        return await self._store_at(self._services)

    async def find_ahead(self) -> Ahead:
        """Among the services that were found last."""
        return self._ahead(_held(await self._client.get_all(self._services)))

    def offer(self, head: Head, holders: Holders) -> None:
        """From now on this head is stored; its checkpoint says who has which part."""
        self._head = head
        self._named = Voters.named(self._allotment.split.threshold, holders)

    async def anchor(self, head: Head, holders: Holders) -> Refreshed:
        """Store a newer head, at the services that were found last: this must be quick. Without ``is_safe`` it is not
        anchored; ``ahead`` names services where a later one of us has taken its turn."""
        async with self._storing:
            self.offer(head, holders)
        return await (self._store_at(self._services) if self._services else self.refresh())

    # -- another split, or another key ---------------------------------------------------------------------

    def fitting_split(self) -> Split | None:
        """Another one that fits the services that we have now better."""
        holding = len(self._allotment.holders)
        return fitting_split(self._allotment.split, self._key, len(self._services), holding)

    async def prepare(self, key: DiskKey, split: Split) -> Holders | None:
        """Give services a part of the other split, or the other key, beside what they have. Who has which, once enough of
        them have it and it can be had; None: not yet, and it is as before."""
        self._renewal = Renewal(key, Allotment(split))
        done = await self.refresh()
        replies = await self._client.get_all(self._services)
        values = values_in(replies.values())
        mine = [v for v in values if v.fence == self._fence and v.is_authentic(self._key)]
        have = {p.index for value in mine for p in value.parts if p.set_id == split.set_id}
        whole = self._allotment.split.threshold == 1 < split.threshold
        # Whoever has a whole copy could bring back what was before: all of them take part, or nobody.
        missing = self._allotment.holders.keys() - set(done.stored) if whole else set()
        if done.is_safe and len(have) >= split.threshold and not missing:
            return self._renewal.allotment.holders
        self._renewal = None
        return None

    async def adopt(self, head: Head, holders: Holders) -> Refreshed:
        """What was prepared takes the place of the former, with the first head that was made with it. Both majorities
        must vote for it."""
        async with self._storing:
            assert self._renewal is not None  # noqa: S101 - prepared before
            if self._renewal.key != self._key:
                self._former = (self._key, *self._former)
            self._key, self._allotment = self._renewal.key, self._renewal.allotment
            self._renewal = None
            self.offer(head, holders)
        return await self._store_at(self._services)

    # -- storing -------------------------------------------------------------------------------------------

    async def _store_at(self, services: Sequence[Service]) -> Refreshed:
        async with self._storing:
            return await self._store_all(services)

    async def _store_all(self, services: Sequence[Service]) -> Refreshed:
        replies = await self._client.get_all(services)
        held = _held(replies)
        ahead = self._ahead(held)
        ours = self._ours(replies, held)
        foreign = [s for s in services if s not in ours and replies[s].got is not Got.SILENT]
        wanted = self._wanted(ours) if not ahead else {}
        confirmed = await self._store(wanted, {s: replies[s].data for s in wanted})
        if confirmed:
            # Given up once is given up: from now on the rule holds without exception.
            self._forget = False
        failed = [s for s in wanted if s not in confirmed]
        old = [value for s in failed if (value := held[s]) is not None]
        members, needed = self._votes({s.pubkey for s in confirmed if self._may_vote(held[s])})
        done = Refreshed(
            stored=tuple(s.pubkey for s in confirmed),
            failed=tuple(s.pubkey for s in failed),
            conflicts=tuple(s.pubkey for s in foreign),
            ahead=ahead,
            members=members,
            needed=needed,
            is_outdated=any(value.head != self._head for value in old) and self._yields_key(old),
        )
        if done.is_safe:
            self._base, self._deciders, self._is_first = self._head, (self._named,), False
        return done

    def _may_vote(self, value: Stored | None) -> bool:
        return self._is_first or (value is not None and value.fence == self._fence)

    def _votes(self, pubkeys: Set[str]) -> tuple[int, int]:
        """How many parts voted, and how many must: of those who decided before, and of those whom this head names."""
        leaving = self._named.threshold > 1
        return fewest((*self._deciders, self._named), pubkeys, leaving=leaving)

    def _ours(self, replies: Mapping[Service, GetReply], held: Held) -> Held:
        """Of what is held, what may be replaced."""
        return {s: held[s] for s, reply in replies.items() if self._may_replace(reply, held[s])}

    def _may_replace(self, reply: GetReply, value: Stored | None) -> bool:
        if reply.got is Got.SILENT:
            return False
        if reply.got is Got.NONE or self._forget:
            return True
        if value is None or not self._is_ours(value) or self._is_ahead(value):
            return False
        return value.fence == self._fence or value.fence.epoch < self._fence.epoch

    def _is_ours(self, value: Stored) -> bool:
        return any(value.is_authentic(key) for key in (self._key, *self._former))

    def _ahead(self, held: Held) -> Ahead:
        found = {s: v for s, v in held.items() if v is not None and self._is_ahead(v)}
        has_begun = any(value.head.epoch == value.fence.epoch for value in found.values())
        return Ahead(tuple(service.pubkey for service in found), has_begun)

    def _is_ahead(self, value: Stored) -> bool:
        """Whether a later one of us has its turn there; or an earlier one went on after we looked, at a service that forgot
        our fence."""
        if value.fence == self._fence or not self._is_ours(value):
            return False
        return value.fence.epoch > self._fence.epoch or self._base.is_behind(value.head)

    def _wanted(self, held: Held) -> dict[Service, Stored]:
        return {
            service: to_store(self._key, parts, self._head, self._fence)
            for service, parts in self._parts(held).items()
        }

    def _parts(self, held: Held) -> dict[Service, list[Part]]:
        """What each is to keep, of the present split and of the one to come."""
        now = self._client.clock.now()
        allotments = [self._allotment, *([self._renewal.allotment] if self._renewal else [])]
        given: dict[Service, list[Part]] = {}
        for allotment in allotments:
            for service, part in allotment.give(held, now).items():
                given.setdefault(service, []).append(part)
        return given

    async def _store(
        self, wanted: Mapping[Service, Stored], expected: Mapping[Service, str]
    ) -> list[Service]:
        """Those that confirm."""
        confirmed: list[Service] = []

        async def store(service: Service) -> None:
            text = encode(wanted[service])
            if await self._client.store(service, text, expected=expected[service]):
                confirmed.append(service)

        async with trio.open_nursery() as nursery:
            for service in wanted:
                nursery.start_soon(store, service)
        return confirmed

    def _yields_key(self, values: Sequence[Stored]) -> bool:
        return self._key in [found.key for found in gather(values)]


def _held(replies: Mapping[Service, GetReply]) -> Held:
    return {service: stored_in(reply) for service, reply in replies.items()}
