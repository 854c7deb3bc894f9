"""Admission: which events may be acted on at all. Time comes in as a parameter.

An event passes once: fresh, unexpired, never seen before (also not before a restart), within its author's and
everybody's rate. For notes there is a loop guard besides: bots that answer each other would never stop.

An RPC request that does not pass for its date or its rate is told so, since its author cannot know. That must
be worth nothing to whoever replays other people's requests: once per id, from a rate of its own, and never acted
on afterwards.
"""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from bot.server.rates import Rate, Rates
from nips import kinds
from nips.event import VerifiedEvent
from nips.nip10 import thread_root
from nips.nip40 import is_expired

# Carried by every note of ours (NIP-89), so that no instance answers another one.
CLIENT_TAG = ("client", "enclaved")


@dataclass(frozen=True)
class InboxPolicy:
    """Windows in seconds; rates are buckets that hold ``burst`` and refill ``per_minute``.

    A request that is dated outside of ``rpc_window_s`` is answered with an error within ``answer_window_s``:
    clocks without a battery or with a wrong time zone are off by hours.
    """

    rpc_window_s: int = 120
    note_window_s: int = 600
    answer_window_s: int = 86_400
    caller_burst: int = 60
    caller_per_minute: int = 120
    total_burst: int = 5_000
    total_per_minute: int = 60_000
    refusals_burst: int = 10
    refusals_per_minute: int = 10
    total_refusals_burst: int = 500
    total_refusals_per_minute: int = 1_200
    replies_per_thread: int = 10
    max_threads: int = 10_000
    max_callers: int = 10_000


class Admission(Enum):
    """ACT: on the event. RATE_LIMITED, MISDATED, EXPIRED: say so if the door can. IGNORE: silence."""

    ACT = "act"
    RATE_LIMITED = "rate-limited"
    MISDATED = "misdated"
    EXPIRED = "expired"
    IGNORE = "ignore"


class Seen(Protocol):
    """Ids for a time each; `record` returns when the id is durable."""

    @property
    def is_full(self) -> bool: ...
    def __contains__(self, event_id: str, /) -> bool: ...
    async def record(self, event_id: str, keep_s: int) -> None: ...


class Inbox:
    """Keeps rates and threads in memory; ``seen``: the ids that were let in, ``refused``: those told off."""

    def __init__(self, own_pubkey: str, seen: Seen, refused: Seen, policy: InboxPolicy) -> None:
        self._own_pubkey = own_pubkey
        self._seen, self._refused = seen, refused
        self._policy = policy
        self._requests = Rates(
            Rate(policy.caller_burst, policy.caller_per_minute),
            Rate(policy.total_burst, policy.total_per_minute),
            policy.max_callers,
        )
        # A rate of its own: who replays somebody's old requests must not use up his rate for new ones.
        self._refusals = Rates(
            Rate(policy.refusals_burst, policy.refusals_per_minute),
            Rate(policy.total_refusals_burst, policy.total_refusals_per_minute),
            policy.max_callers,
        )
        self._threads: OrderedDict[str, int] = OrderedDict()
        self.ignored: defaultdict[str, int] = defaultdict(int)

    async def admit(self, event: VerifiedEvent, now: int) -> Admission:
        """Decide, and remember the id. There is no await between the check of an id and its record."""
        reason = self._reason_to_ignore(event)
        if reason is not None:
            return self._ignore(reason)
        if abs(now - event.created_at) > self._window(event):
            return await self._tell(event, now, Admission.MISDATED)
        if is_expired(event, now):
            return await self._tell(event, now, Admission.EXPIRED)
        if self._seen.is_full:
            # What cannot be remembered could be replayed.
            return self._ignore("full")
        within_rate = self._requests.allow(event.pubkey, now)
        if not within_rate and not self._refusals.allow(event.pubkey, now):
            return self._ignore("rate")
        await self._seen.record(event.id, event.created_at + self._window(event) - now)
        return Admission.ACT if within_rate else Admission.RATE_LIMITED

    async def _tell(self, event: VerifiedEvent, now: int, why: Admission) -> Admission:
        """Requests only: complaining in public, or about what is long past, serves nobody."""
        keep_s = event.created_at + self._policy.answer_window_s - now
        ahead_s = event.created_at - now
        told = event.kind == kinds.RPC and ahead_s <= self._policy.answer_window_s and keep_s >= 0
        if not told or self._refused.is_full or not self._refusals.allow(event.pubkey, now):
            return self._ignore(why.value)
        # As long as it could be told again.
        await self._refused.record(event.id, keep_s)
        return why

    def _ignore(self, reason: str) -> Admission:
        self.ignored[reason] += 1
        return Admission.IGNORE

    def _reason_to_ignore(self, event: VerifiedEvent) -> str | None:
        if event.kind not in (kinds.RPC, kinds.NOTE):
            return "kind"
        if event.pubkey == self._own_pubkey:
            return "own"
        if event.id in self._seen or event.id in self._refused:
            return "replay"
        return "loop" if event.kind == kinds.NOTE and self._may_loop(event) else None

    def _window(self, event: VerifiedEvent) -> int:
        return (
            self._policy.note_window_s if event.kind == kinds.NOTE else self._policy.rpc_window_s
        )

    def _may_loop(self, note: VerifiedEvent) -> bool:
        by_a_bot = any(t[:2] == CLIENT_TAG for t in note.tags)
        return (
            by_a_bot or self._threads.get(thread_root(note), 0) >= self._policy.replies_per_thread
        )

    def count_reply(self, note: VerifiedEvent) -> None:
        """A note of a thread was answered."""
        root = thread_root(note)
        self._threads[root] = self._threads.pop(root, 0) + 1
        if len(self._threads) > self._policy.max_threads:
            self._threads.popitem(last=False)
