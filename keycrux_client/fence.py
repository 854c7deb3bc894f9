"""Whose turn it is: a life that begins takes its turn at a majority of services before it writes any state of its own.

It is Paxos, in two steps over values that services exchange by compare-and-set:

    fence    what a service holds stays as it is, only under the fence of the new life. From then on no older life writes
             there. Of any majority and any head that a majority took before, one service is in both: so the newest head
             that a fenced majority holds is, or was made from, whatever was ever anchored.
    anchor   a head, at a majority that stands under our fence.

Whoever meets a higher fence knows that he was overtaken. So of two that run at once, the older one stops before the newer
one has written anything, and there is no moment at which both could go on.
"""

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field

import trio

from keycrux_client.client import EscrowClient
from keycrux_client.discovery import Service
from keycrux_client.protocol import GetReply
from keycrux_client.recovery import stored_in
from keycrux_client.shares import DiskKey, Fence, Stored, encode, fenced

Holders = Mapping[str, tuple[int, int]]
"""Service → the part it has, and when it was last heard of (Unix seconds)."""


@dataclass(frozen=True)
class Voters:
    """Whom a checkpoint names: so many different parts must agree. ``holders``: service → part. With whole copies there is
    no majority, and one will do; but who leaves them must have reached everybody who has one."""

    threshold: int
    holders: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def named(cls, threshold: int, holders: Holders) -> "Voters":
        """By an allotment."""
        return cls(threshold, {pubkey: index for pubkey, (index, _) in holders.items()})

    def votes(self, pubkeys: Set[str], *, leaving: bool = False) -> tuple[int, int]:
        """How many agree, and how many must. ``leaving``: for shares, where these have whole copies."""
        if self.threshold > 1:
            return len({self.holders[p] for p in pubkeys if p in self.holders}), self.threshold
        if leaving:
            return len(pubkeys & self.holders.keys()), len(self.holders)
        return min(1, len(pubkeys)), 1


def fewest(
    voters: Iterable[Voters], pubkeys: Set[str], *, leaving: bool = False
) -> tuple[int, int]:
    """Of several who must all agree, those who lack most: how many agree, and how many must."""
    votes = [each.votes(pubkeys, leaving=leaving) for each in voters]
    return max(votes, key=lambda vote: vote[1] - vote[0], default=(0, 0))


async def put_fence(
    client: EscrowClient,
    keys: Collection[DiskKey],
    replies: Mapping[Service, GetReply],
    fence: Fence,
) -> frozenset[str]:
    """At all services that still hold what they replied, if it is ours, by any of these keys, and under a lower one. Those
    that took it."""
    took: set[str] = set()

    async def put(service: Service, value: Stored, key: DiskKey) -> None:
        text = encode(fenced(key, value, fence))
        if await client.store(service, text, expected=replies[service].data):
            took.add(service.pubkey)

    async with trio.open_nursery() as nursery:
        for service, reply in replies.items():
            value = stored_in(reply)
            if value is None or value.fence.epoch >= fence.epoch:
                continue
            for key in (key for key in keys if value.is_authentic(key)):
                nursery.start_soon(put, service, value, key)
    return frozenset(took)
