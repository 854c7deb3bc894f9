"""Announcements of an instance (13793) and of a container (63797), and their profiles (kind 0).

Formats are NEC-02's and upstream's. Without a TEE there is no ``tee_root`` and ``t`` is ``debug``:
nothing here can be mistaken for an attested instance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from nips import kinds
from nips.event import Event, Tag, sign_event
from nips.keys import SecretKey

CONTAINER_EXPIRATION_S = 3 * 3600


@dataclass(frozen=True)
class InstanceFacts:
    """What the instance tells the world. ``price_msat`` is per unit and interval."""

    name: str
    about: str
    version: str
    repo: str
    relay_urls: Sequence[str]
    open_for_new: bool
    price_msat: int
    interval_s: int
    units_free: int
    units_total: int


def build_announcement(key: SecretKey, facts: InstanceFacts, now: int) -> Event:
    """The replaceable 13793 event, with our price and capacity tags."""
    tags: list[Tag] = [
        ("r", facts.repo),
        ("name", facts.name),
        ("v", facts.version),
        ("t", "debug"),
        ("alt", "enclaved instance announcement"),
        ("o", "true" if facts.open_for_new else "false"),
        ("price", str(facts.price_msat)),
        ("interval", str(facts.interval_s)),
        ("units_free", str(facts.units_free)),
        ("units_total", str(facts.units_total)),
    ]
    tags += [("relay", url) for url in facts.relay_urls]
    return sign_event(key, kinds.ANNOUNCEMENT, facts.about, tags, now)


def build_profile(
    key: SecretKey, *, name: str, about: str, lud16: str | None, now: int, bot: bool = True
) -> Event:
    """A kind-0 profile; ``bot`` is NIP-24's flag that lets other bots keep silent."""
    profile: dict[str, object] = {"name": name, "about": about, "bot": bot}
    if lud16 is not None:
        profile["lud16"] = lud16
    return sign_event(key, kinds.PROFILE, orjson.dumps(profile).decode(), [], now)


@dataclass(frozen=True)
class ContainerFacts:
    """What a container tells the world. ``balance_sat`` is rounded down."""

    instance: str
    admin: str
    state: str
    balance_sat: int
    image: str
    units: int
    endpoints: Sequence[str]
    reason: str | None


def build_container(key: SecretKey, facts: ContainerFacts, now: int) -> Event:
    """The 63797 event. The kind is not replaceable, so it expires and we delete what it replaces."""
    tags: list[Tag] = [
        ("p", facts.instance, "enclaved"),
        ("p", facts.admin, "admin"),
        ("r", f"docker://{facts.image}", "docker"),
        ("t", "debug"),
        ("state", facts.state),
        ("balance", str(facts.balance_sat)),
        ("units", str(facts.units)),
        ("alt", "enclaved container"),
        ("expiration", str(now + CONTAINER_EXPIRATION_S)),
    ]
    tags += [("endpoint", endpoint) for endpoint in facts.endpoints]
    if facts.reason is not None:
        tags.append(("reason", facts.reason))
    return sign_event(key, kinds.CONTAINER, "", tags, now)


def build_deletion(key: SecretKey, events: Sequence[tuple[str, int]], now: int) -> Event:
    """NIP-09 for our own events, given as ``(id, kind)``."""
    tags: list[Tag] = [("e", event_id) for event_id, _ in events]
    tags += [("k", str(kind)) for kind in sorted({kind for _, kind in events})]
    return sign_event(key, kinds.DELETION, "replaced", tags, now)
