"""Whose turn it is: a life that begins takes its turn at a majority of services before it writes any state of its own.

It is Paxos, in two steps over values that services exchange by compare-and-set:

    fence    what a service holds stays as it is, only under the fence of the new life. From then on no older life writes
             there. Of any majority and any head that a majority took before, one service is in both: so the newest head
             that a fenced majority holds is, or was made from, whatever was ever anchored.
    anchor   a head, at a majority that stands under our fence.

Whoever meets a higher fence knows that he was overtaken. So of two that run at once, the older one stops before the newer
one has written anything, and there is no moment at which both could go on.
"""

from collections.abc import Collection, Mapping, Set
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
    """Who decides, by an anchored checkpoint: so many different parts must agree. A part that was given away since
    does not count, for another life may have given it to somebody else. With whole copies there is no majority, and one will do."""

    threshold: int
    holders: Holders = field(default_factory=dict)

    def count(self, pubkeys: Set[str]) -> int:
        """How many parts these have."""
        if self.threshold == 1:
            return min(1, len(pubkeys))
        return len({self.holders[pubkey][0] for pubkey in pubkeys if pubkey in self.holders})

    def lack(self, pubkeys: Set[str]) -> int:
        """How many more it takes."""
        return max(0, self.threshold - self.count(pubkeys))


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
        if not await client.set(service, text, expected=replies[service].data):
            return
        # What a service took counts when it is there.
        if (await client.get(service)).data == text:
            took.add(service.pubkey)

    async with trio.open_nursery() as nursery:
        for service, reply in replies.items():
            value = stored_in(reply)
            if value is None or value.fence.epoch >= fence.epoch:
                continue
            for key in (key for key in keys if value.is_authentic(key)):
                nursery.start_soon(put, service, value, key)
    return frozenset(took)
