"""NEC-02: the announcement of an instance (13793; older 63793), with what proves it in its tags."""

from collections.abc import Sequence
from dataclasses import dataclass

from nips import kinds
from nips.event import Event, Tag, VerifiedEvent, sign_event
from nips.keys import SecretKey
from nips.nip40 import expiration_of
from nips.tee.env import Env
from nips.tee.nec01 import Root

# The registers that are told. 3 is the IAM role, which enclaves here do not use.
TOLD_PCRS = (0, 1, 2, 4, 8)


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
    # The wallet's key, and whose it is; None while it is not known.
    wallet: tuple[str, str] | None = None


@dataclass(frozen=True)
class Signatures:
    """What builder, launcher and maintainers signed, as the parent handed it over and we verified it."""

    builder: Event | None = None
    launcher: Event | None = None
    releases: tuple[Event, ...] = ()


def build_announcement(
    key: SecretKey, facts: InstanceFacts, root: Root | None, signatures: Signatures, now: int
) -> VerifiedEvent:
    """The replaceable event. Without a ``tee_root`` it says ``debug``: nothing can be mistaken for proof."""
    tags: list[Tag] = [
        ("r", facts.repo),
        ("name", facts.name),
        ("v", facts.version),
        ("t", (root.env if root is not None else Env.DEBUG).value),
        ("alt", "enclaved instance announcement"),
        ("o", "true" if facts.open_for_new else "false"),
        ("price", str(facts.price_msat)),
        ("interval", str(facts.interval_s)),
        ("units_free", str(facts.units_free)),
        ("units_total", str(facts.units_total)),
    ]
    tags += [("relay", url) for url in facts.relay_urls]
    if facts.wallet is not None:
        tags.append(("wallet", *facts.wallet))
    if root is not None:
        tags += proof_tags(root, signatures)
    return sign_event(key, kinds.ANNOUNCEMENT, facts.about, tags, now)


def proof_tags(root: Root, signatures: Signatures) -> list[Tag]:
    """The tags that let anybody check a service: any service, not only ours."""
    tags: list[Tag] = [
        ("tee_root", root.event.json.decode()),
        ("expiration", str(expiration_of(root.event))),
    ]
    pcrs = root.attested.pcrs
    told = {index: pcrs.hex(index) for index in TOLD_PCRS}
    tags += [("x", text, f"PCR{index}") for index, text in told.items() if text is not None]
    for name, role, event in _named(signatures):
        tags += [(name, event.json.decode()), ("p", event.pubkey, role)]
    return tags


def _named(signatures: Signatures) -> list[tuple[str, str, Event]]:
    named = [
        ("build", "builder", signatures.builder),
        ("instance", "launcher", signatures.launcher),
    ]
    named += [("release", "releaser", event) for event in signatures.releases]
    return [(name, role, event) for name, role, event in named if event is not None]
