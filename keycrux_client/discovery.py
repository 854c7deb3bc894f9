"""Which escrow services to believe: announced in the last hours, verified in full, by maintainers we name."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from keycrux_client.ports import Relays
from nips import kinds
from nips.event import Event
from nips.filters import Filter
from nips.tee.attestation import Verifier
from nips.tee.env import Env
from nips.tee.policies import ExpectedEnv, ExpectedMaintainers, ExpectedRepo, Policy
from nips.tee.verification import verify_announcement

# Services announce every hour; certificates of documents live for three.
ANNOUNCED_WITHIN_S = 3 * 3600
MAX_SERVICES = 32


@dataclass(frozen=True)
class Service:
    """A service that verified, just now."""

    pubkey: str
    relay_url: str


@dataclass(frozen=True)
class Trust:
    """What a service must be. Nothing to expect in any field makes every service fail."""

    repo: str
    maintainers: frozenset[str]
    envs: frozenset[Env]

    def policies(self) -> list[Policy]:
        """As the verifier wants them."""
        return [
            ExpectedRepo(self.repo),
            ExpectedMaintainers(self.maintainers),
            ExpectedEnv(self.envs),
        ]


@dataclass(frozen=True)
class Discovered:
    """``refused``: announced, but not believed, and why. ``silent``: relays that did not answer."""

    services: tuple[Service, ...]
    refused: tuple[tuple[str, str], ...]
    silent: tuple[str, ...] = ()


async def discover(
    relays: Relays, relay_urls: Sequence[str], trust: Trust, verifier: Verifier, now: int
) -> Discovered:
    """Ask the relays for announcements and verify each; the newest that verifies counts per service."""
    wanted = Filter(
        kinds=frozenset({kinds.ANNOUNCEMENT}),
        tags={"r": frozenset({trust.repo})},
        since=now - ANNOUNCED_WITHIN_S,
    )
    found = await relays.search([wanted], relay_urls)
    judged = judge(found.events, trust, verifier, now)
    return replace(judged, silent=found.silent)


def judge(
    announcements: Sequence[Event], trust: Trust, verifier: Verifier, now: int
) -> Discovered:
    """The pure half."""
    services: dict[str, Service] = {}
    refused: dict[str, str] = {}
    for event in sorted(announcements, key=lambda e: e.created_at, reverse=True):
        if event.pubkey in services or len(services) >= MAX_SERVICES:
            continue
        verdict, evidence = verify_announcement(event, verifier, now, trust.policies())
        if evidence is not None and evidence.relay_urls:
            services[event.pubkey] = Service(event.pubkey, evidence.relay_urls[0])
        else:
            refused.setdefault(event.pubkey, verdict.reason or "it names no relay")
    unbelieved = [(pubkey, why) for pubkey, why in refused.items() if pubkey not in services]
    return Discovered(tuple(services.values()), tuple(unbelieved))
