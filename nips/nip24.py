"""NIP-24: profiles (kind 0) with the flag that marks a bot."""

import orjson

from nips import kinds
from nips.event import VerifiedEvent, sign_event
from nips.keys import SecretKey


def build_profile(
    key: SecretKey, *, name: str, about: str, lud16: str | None, now: int
) -> VerifiedEvent:
    """``lud16`` is a lightning address."""
    profile: dict[str, object] = {"name": name, "about": about, "bot": True}
    if lud16 is not None:
        profile["lud16"] = lud16
    return sign_event(key, kinds.PROFILE, orjson.dumps(profile).decode(), [], now)
