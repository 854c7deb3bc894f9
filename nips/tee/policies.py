"""What a verifier may expect of an instance whose evidence holds. Each policy is an object that answers
with a `Check`, and fails closed when it was given nothing to expect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nips.tee.env import Env
from nips.tee.nec01 import Root
from nips.tee.nec05 import Release
from nips.tee.verdict import Check, Outcome


@dataclass(frozen=True)
class InstanceEvidence:
    """What holds of an instance: only facts whose proof was checked."""

    pubkey: str
    root: Root
    repo: str | None
    version: str | None
    builder: str | None
    launcher: str | None
    releases: tuple[Release, ...]
    relay_urls: tuple[str, ...]

    @property
    def env(self) -> Env:
        """As attested."""
        return self.root.env

    @property
    def not_after(self) -> int:
        """Nothing of this may be believed later, Unix seconds."""
        return self.root.attested.not_after


class Policy(Protocol):
    """One expectation."""

    def check(self, evidence: InstanceEvidence) -> Check: ...  # noqa: D102 - told by the class


@dataclass(frozen=True)
class ExpectedMaintainers:
    """Every one of these signed the release, for the environment that the instance claims."""

    pubkeys: frozenset[str]

    def check(self, evidence: InstanceEvidence) -> Check:
        """Fails on an empty set: nobody's signature is no signature."""
        name = "maintainers"
        if not self.pubkeys:
            return Check(name, Outcome.FAILS, "no maintainer is expected, so nobody can vouch")
        signed = {r.maintainer for r in evidence.releases if _serves(r, evidence.env)}
        missing = sorted(self.pubkeys - signed)
        if missing:
            return Check(name, Outcome.FAILS, f"not signed by {', '.join(missing)}")
        return Check(name, Outcome.HOLDS, f"signed by all {len(self.pubkeys)} expected")


def _serves(release: Release, env: Env) -> bool:
    # A release that is signed for production may run anywhere; one for development is no production.
    return env is not Env.PROD or Env.PROD in release.envs


@dataclass(frozen=True)
class ExpectedRepo:
    """Release signatures name this repository, and so does the announcement, whose own word is no evidence."""

    repo: str

    def check(self, evidence: InstanceEvidence) -> Check:
        """Fails on an empty name, and without any signature."""
        if not self.repo:
            return Check("repo", Outcome.FAILS, "no repository is expected")
        if not evidence.releases:
            return Check("repo", Outcome.FAILS, "nobody signed it as a release of any repository")
        named = {evidence.repo, *(release.repo for release in evidence.releases)}
        others = sorted(str(name) for name in named - {self.repo})
        if others:
            return Check("repo", Outcome.FAILS, f"it is {', '.join(others)}")
        return Check("repo", Outcome.HOLDS, self.repo)


@dataclass(frozen=True)
class ExpectedPcrs:
    """These registers have these values (hex)."""

    pcrs: Mapping[int, str]

    def check(self, evidence: InstanceEvidence) -> Check:
        """Fails on an empty map."""
        if not self.pcrs:
            return Check("expected PCRs", Outcome.FAILS, "no PCR is expected")
        found = evidence.root.attested.pcrs
        wrong = [f"PCR{i}" for i, value in self.pcrs.items() if found.hex(i) != value.lower()]
        if wrong:
            return Check("expected PCRs", Outcome.FAILS, f"{', '.join(wrong)} differ")
        told = ", ".join(f"PCR{index}" for index in self.pcrs)
        return Check("expected PCRs", Outcome.HOLDS, f"{told} as expected")


@dataclass(frozen=True)
class MaxAge:
    """The document was signed at most so many seconds before ``now``."""

    seconds: int
    now: int

    def check(self, evidence: InstanceEvidence) -> Check:
        """Fails for a limit that is not positive."""
        return self.check_root(evidence.root)

    def check_root(self, root: Root) -> Check:
        """The same for any attestation, such as a container's."""
        age_s = self.now - root.attested.document.timestamp_s
        outcome = Outcome.HOLDS if age_s <= self.seconds and self.seconds > 0 else Outcome.FAILS
        return Check("age", outcome, f"the document is {max(0, age_s)} s old")


@dataclass(frozen=True)
class ExpectedEnv:
    """The instance is of one of these environments, and what it needs for that was checked before."""

    envs: frozenset[Env]

    def check(self, evidence: InstanceEvidence) -> Check:
        """Fails on an empty set."""
        outcome = Outcome.HOLDS if evidence.env in self.envs else Outcome.FAILS
        return Check("expected environment", outcome, f"it is {evidence.env.value}")


@dataclass(frozen=True)
class DebugPolicy:
    """Whether an instance that its host can read is good enough. By default it is not."""

    allowed: bool = False

    def check(self, evidence: InstanceEvidence) -> Check:
        """The environment was checked against the evidence before."""
        if evidence.env is Env.DEBUG and not self.allowed:
            return Check("debug", Outcome.FAILS, "its host can read and change it")
        return Check("debug", Outcome.HOLDS, f"{evidence.env.value} is allowed here")


def apply_policies(policies: Sequence[Policy], evidence: InstanceEvidence) -> list[Check]:
    """Each policy's check; no policy at all is a failure, not a pass."""
    if not policies:
        return [Check("policy", Outcome.FAILS, "no policy was given")]
    return [policy.check(evidence) for policy in policies]
