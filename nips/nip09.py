"""NIP-09: deletion of our own events."""

from collections.abc import Sequence

from nips import kinds
from nips.event import Tag, VerifiedEvent, sign_event
from nips.keys import SecretKey


def build_deletion(key: SecretKey, events: Sequence[tuple[str, int]], now: int) -> VerifiedEvent:
    """For events given as ``(id, kind)``."""
    tags: list[Tag] = [("e", event_id) for event_id, _ in events]
    tags += [("k", str(kind)) for kind in sorted({kind for _, kind in events})]
    return sign_event(key, kinds.DELETION, "replaced", tags, now)
