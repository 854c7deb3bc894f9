"""NIP-65 relay lists (10002) and NIP-17 DM relay lists (10050)."""

from collections.abc import Sequence

from nips import kinds
from nips.event import VerifiedEvent, sign_event
from nips.keys import SecretKey


def build_relay_list(key: SecretKey, relay_urls: Sequence[str], now: int) -> VerifiedEvent:
    """Where this key reads and writes."""
    return sign_event(key, kinds.RELAY_LIST, "", [("r", url) for url in relay_urls], now)


def build_dm_relay_list(key: SecretKey, relay_urls: Sequence[str], now: int) -> VerifiedEvent:
    """Where this key receives private messages."""
    return sign_event(key, kinds.DM_RELAY_LIST, "", [("relay", url) for url in relay_urls], now)
