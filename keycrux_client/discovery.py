"""Which escrow services to believe: announced in the last hours, verified in full, by maintainers we name."""

from collections.abc import Sequence
from dataclasses import dataclass

from keycrux_client.ports import Relays
from nips import kinds
from nips.attestation import Verifier
from nips.event import Event
from nips.filters import Filter
from nips.policies import DebugPolicy, ExpectedMaintainers, ExpectedRepo, Policy
from nips.verdict import Verdict
from nips.verification import verify_announcement

# Services announce every hour; certificates of documents live for three.
ANNOUNCED_WITHIN_S = 3 * 3600
MAX_SERVICES = 8


@dataclass(frozen=True)
class Service:
    """A service that verified. Believe it until ``not_after`` (Unix seconds)."""

    pubkey: str
    relay_url: str
    not_after: int


@dataclass(frozen=True)
class Trust:
    """What a service must be. An empty repository or no maintainers makes every service fail."""

    repo: str
    maintainers: frozenset[str]
    allow_debug: bool = False

    def policies(self) -> list[Policy]:
        """As the verifier wants them."""
        return [
            ExpectedRepo(self.repo),
            ExpectedMaintainers(self.maintainers),
            DebugPolicy(self.allow_debug),
        ]


@dataclass(frozen=True)
class Discovered:
    """``refused``: announced, but not believed, with the reason."""

    services: tuple[Service, ...]
    refused: tuple[tuple[str, Verdict], ...]


async def discover(
    relays: Relays, relay_urls: Sequence[str], trust: Trust, verifier: Verifier, now: int
) -> Discovered:
    """Ask the relays for announcements and verify each; the newest that verifies counts per service."""
    wanted = Filter(
        kinds=frozenset({kinds.ANNOUNCEMENT}),
        tags={"r": frozenset({trust.repo})},
        since=now - ANNOUNCED_WITHIN_S,
    )
    return judge(await relays.find([wanted], relay_urls), trust, verifier, now)


def judge(
    announcements: Sequence[Event], trust: Trust, verifier: Verifier, now: int
) -> Discovered:
    """The pure half."""
    services: dict[str, Service] = {}
    refused: list[tuple[str, Verdict]] = []
    for event in sorted(announcements, key=lambda e: e.created_at, reverse=True):
        if event.pubkey in services or len(services) >= MAX_SERVICES:
            continue
        verdict, evidence = verify_announcement(event, verifier, now, trust.policies())
        if evidence is None or not evidence.relay_urls:
            refused.append((event.pubkey, verdict))
        else:
            services[event.pubkey] = Service(
                event.pubkey, evidence.relay_urls[0], evidence.not_after
            )
    return Discovered(tuple(services.values()), tuple(refused))
