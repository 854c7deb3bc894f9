"""Admission: which events may be acted on at all. Time comes in as a parameter.

An event passes once: fresh, unexpired, never seen before (also not before a restart),
within its author's and everybody's rate. For notes there is a loop guard besides: bots that answer
each other would never stop.
"""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from nips import kinds
from nips.event import VerifiedEvent
from nips.nip10 import thread_root
from nips.nip40 import is_expired

# Carried by every note of ours (NIP-89), so that no instance answers another one.
CLIENT_TAG = ("client", "enclaved")


@dataclass(frozen=True)
class InboxPolicy:
    """Windows in seconds; rates are buckets that hold ``burst`` and refill ``per_minute``."""

    rpc_window_s: int = 120
    note_window_s: int = 600
    caller_burst: int = 60
    caller_per_minute: int = 120
    total_burst: int = 5_000
    total_per_minute: int = 60_000
    replies_per_thread: int = 10
    max_threads: int = 10_000
    max_callers: int = 10_000


class Verdict(Enum):
    """ADMIT: act on it. RATE_LIMITED: say so if the door can. IGNORE: silence."""

    ADMIT = "admit"
    RATE_LIMITED = "rate-limited"
    IGNORE = "ignore"


class Seen(Protocol):
    """Ids that were admitted; `record` returns when the id is durable."""

    def __contains__(self, event_id: str, /) -> bool: ...
    async def record(self, event_id: str, until: int) -> None: ...


@dataclass
class _Bucket:
    tokens: float
    filled_at: int


class Inbox:
    """Keeps rates and threads in memory, ids in `Seen`."""

    def __init__(self, own_pubkey: str, seen: Seen, policy: InboxPolicy) -> None:
        self._own_pubkey = own_pubkey
        self._seen = seen
        self._policy = policy
        self._callers: OrderedDict[str, _Bucket] = OrderedDict()
        self._total = _Bucket(policy.total_burst, 0)
        self._threads: OrderedDict[str, int] = OrderedDict()
        self.refused: defaultdict[str, int] = defaultdict(int)

    async def admit(self, event: VerifiedEvent, now: int) -> Verdict:
        """Decide, and remember the id."""
        reason = self._reason_to_ignore(event, now)
        if reason is not None:
            self.refused[reason] += 1
            return Verdict.IGNORE
        # In memory the id counts from here on: there is no await between the check and the record.
        recorded = self._seen.record(event.id, now + 2 * self._window(event))
        within_rate = self._within_rate(event.pubkey, now)
        await recorded
        return Verdict.ADMIT if within_rate else Verdict.RATE_LIMITED

    def _reason_to_ignore(self, event: VerifiedEvent, now: int) -> str | None:
        if event.kind not in (kinds.RPC, kinds.NOTE):
            return "kind"
        if event.pubkey == self._own_pubkey:
            return "own"
        if event.id in self._seen:
            return "replay"
        if abs(now - event.created_at) > self._window(event):
            return "stale"
        if is_expired(event, now):
            return "expired"
        if event.kind == kinds.NOTE and self._may_loop(event):
            return "loop"
        return None

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

    def _within_rate(self, caller: str, now: int) -> bool:
        policy = self._policy
        bucket = self._callers.pop(caller, None) or _Bucket(policy.caller_burst, now)
        self._callers[caller] = bucket
        if len(self._callers) > policy.max_callers:
            self._callers.popitem(last=False)
        mine = _take(bucket, policy.caller_burst, policy.caller_per_minute, now)
        return mine and _take(self._total, policy.total_burst, policy.total_per_minute, now)


def _take(bucket: _Bucket, burst: int, per_minute: int, now: int) -> bool:
    # A clock that steps back must not refill anything.
    elapsed_s = max(0, now - bucket.filled_at)
    bucket.tokens = min(burst, bucket.tokens + elapsed_s * per_minute / 60)
    bucket.filled_at = now
    if bucket.tokens < 1:
        return False
    bucket.tokens -= 1
    return True
