"""The announcement of a container (63797), with the certificates that tie it to its instance."""

from collections.abc import Sequence
from dataclasses import dataclass

from nips import kinds
from nips.event import Event, Tag, VerifiedEvent, sign_event
from nips.keys import SecretKey
from nips.nip40 import expiration_of
from nips.tee.env import Env
from nips.tee.nec01 import Root

EXPIRATION_S = 3 * 3600


@dataclass(frozen=True)
class ContainerFacts:
    """What a container tells the world. ``image`` is pinned; ``balance_sat`` is rounded down."""

    instance: str
    admin: str
    state: str
    balance_sat: int
    image: str
    units: int
    endpoints: Sequence[str]
    reason: str | None
    upgrade: str = ""
    app: str | None = None


def build_container(
    key: SecretKey,
    facts: ContainerFacts,
    proof: tuple[Root, Event] | None,
    now: int,
) -> VerifiedEvent:
    """``proof``: the instance's root, and its certificate for this container.

    The kind is not replaceable, so it expires and we delete what it replaces.
    """
    expiration = now + EXPIRATION_S
    tags: list[Tag] = [
        ("p", facts.instance, "enclaved"),
        ("p", facts.admin, "admin"),
        ("r", f"docker://{facts.image}", "docker"),
        ("t", (proof[0].env if proof is not None else Env.DEBUG).value),
        ("state", facts.state),
        ("balance", str(facts.balance_sat)),
        ("units", str(facts.units)),
        ("upgrade", facts.upgrade),
        ("alt", "enclaved container"),
    ]
    if facts.app is not None:
        tags.append(("p", facts.app, "app"))
    if proof is not None:
        root, certificate = proof
        tags += [
            ("tee_root", root.event.json.decode()),
            ("tee_cert", certificate.json.decode()),
        ]
        expiration = min(expiration, *(expiration_of(e) or 0 for e in (root.event, certificate)))
    tags.append(("expiration", str(expiration)))
    tags += [("endpoint", endpoint) for endpoint in facts.endpoints]
    if facts.reason is not None:
        tags.append(("reason", facts.reason))
    return sign_event(key, kinds.CONTAINER, "", tags, now)
