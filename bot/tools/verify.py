"""``enclaved verify``: from AWS's root to the code that runs, one line a step, one plain sentence, an exit code.

root → document → service key → builder, launcher, maintainers → container certificate → image → app key

Events come from relays, which may lie or leave out; every one is verified. Then the instance is challenged.
What could not be looked at is never reported as good: the exit code is 0 only when all of it holds.
"""

from dataclasses import dataclass

from bot.adapters.relay_events import RelayEvents
from bot.tools.challenge import challenge, check_answer
from bot.tools.report import Answer, Report
from nips import kinds
from nips.errors import BadCertificate
from nips.event import Event
from nips.filters import Filter
from nips.nip19 import Pointer, npub
from nips.tee.attestation import Verifier
from nips.tee.certificates import Certified, verify_certified
from nips.tee.policies import ExpectedMaintainers, InstanceEvidence, MaxAge, Policy
from nips.tee.verdict import Check, Examination, Outcome, Verdict
from nips.tee.verification import verify_announcement, verify_container

MAX_OWN_EVENTS = 100
_INSTANCE = frozenset({kinds.ANNOUNCEMENT, kinds.OLD_ANNOUNCEMENT})


@dataclass(frozen=True)
class Question:
    """What to verify, by which root, at which time, with which expectations of the instance.

    ``ask_instance``: challenge it. Old evidence cannot be asked.
    """

    pointer: Pointer
    relay_urls: tuple[str, ...]
    verifier: Verifier
    now: int
    policies: tuple[Policy, ...]
    ask_instance: bool = True


class _Unknown(Exception):
    """Something could not be looked at; caught in `verify` only."""


async def verify(question: Question, relays: RelayEvents) -> Report:
    """Never raises for what relays or instances say."""
    return await _Verification(question, relays).report()


class _Verification:
    def __init__(self, question: Question, relays: RelayEvents) -> None:
        self._question, self._relays = question, relays
        self._exam = Examination()
        self._facts: dict[str, object] = {}

    async def report(self) -> Report:
        try:
            subject = await self._subject()
            instance = await self._whole(subject)
        except _Unknown as unknown:
            # What was seen to be wrong stays wrong, whatever else could not be seen.
            if not self._exam.verdict().failures:
                return self._report(Answer.COULD_NOT_CHECK, f"COULD NOT CHECK: {unknown}.")
            subject, instance = None, None
        verdict = self._exam.verdict()
        if not verdict.is_valid or instance is None or subject is None:
            return self._report(Answer.NOT_VALID, f"NOT VALID: {verdict.reason}.")
        return self._report(Answer.VALID, self._sentence(subject, instance))

    def _report(self, answer: Answer, sentence: str) -> Report:
        return Report(answer, sentence, self._exam.verdict().checks, self._facts)

    # -- what is asked about ----------------------------------------------------------------------

    async def _subject(self) -> Event:
        """The event to verify: the one named, or the newest that tells what a key is."""
        if not self._question.relay_urls:
            raise _Unknown("no relay is known to ask; name one with --relay, or give an nprofile")
        pointer = self._question.pointer
        if pointer.event_id is not None:
            found = await self._find(Filter(ids=frozenset({pointer.event_id})))
        else:
            found = await self._by_key(pointer.pubkey or "")
        if not found:
            raise _Unknown("no relay has anything of it that could be verified")
        if pointer.pubkey not in (None, found[0].pubkey):
            self._exam.note("author", Outcome.FAILS, "the event is another key's than asked about")
        return found[0]

    async def _by_key(self, pubkey: str) -> list[Event]:
        authors, until = frozenset({pubkey}), self._question.now
        told = await self._find(
            Filter(kinds=_INSTANCE | {kinds.CONTAINER}, authors=authors, until=until)
        )
        if told:
            return told
        # An app shows its certificates in events of its own. What a container says of it would be the
        # container's word alone: anybody's enclave could name anybody's key.
        own = await self._find(Filter(authors=authors, until=until, limit=MAX_OWN_EVENTS))
        return [event for event in own if event.has_tag("tee_root")]

    async def _find(self, wanted: Filter) -> list[Event]:
        return [*await self._relays.find([wanted], self._question.relay_urls)]

    # -- from the subject up to the root ------------------------------------------------------------

    async def _whole(self, subject: Event) -> InstanceEvidence | None:
        if subject.kind in _INSTANCE:
            return await self._instance(subject)
        certified = self._certified(subject)
        if certified is None:
            return None
        announced = await self._find(
            Filter(
                kinds=frozenset({kinds.ANNOUNCEMENT}),
                authors=frozenset({certified.root.pubkey}),
                until=self._question.now,
            )
        )
        if not announced:
            raise _Unknown("the container's evidence holds, but no relay knows its instance")
        instance = await self._instance(announced[0])
        if instance is not None:
            self._exam.examine("same instance", lambda: _check_same(certified, instance))
        self._tell_certified(subject, certified)
        return instance

    def _certified(self, subject: Event) -> Certified | None:
        verifier, now = self._question.verifier, self._question.now
        if subject.kind == kinds.CONTAINER:
            verdict, certified = verify_container(subject, verifier, now)
            self._add("container", verdict)
        else:
            certified = self._exam.examine(
                "certificates", lambda: verify_certified(subject, verifier, now), lambda c: c.path
            )
        if certified is not None:
            for policy in self._question.policies:
                if isinstance(policy, MaxAge):
                    self._exam.add(policy.check_root(certified.root))
        return certified

    async def _instance(self, announcement: Event) -> InstanceEvidence | None:
        question = self._question
        verdict, evidence = verify_announcement(
            announcement, question.verifier, question.now, question.policies
        )
        self._add("instance", verdict)
        if evidence is None:
            return None
        self._tell_instance(evidence)
        if question.ask_instance:
            await self._challenge(evidence)
        return evidence

    async def _challenge(self, evidence: InstanceEvidence) -> None:
        """One that does not answer may be down or busy; one that answers wrongly is not what it says."""
        question = self._question
        urls = [*question.relay_urls, *evidence.relay_urls]
        answered = await challenge(self._relays, evidence.pubkey, urls, question.now)
        self._facts["answered"] = answered is not None
        if answered is None or answered.reply.error is not None:
            how = (
                f"refuses ({answered.reply.error})" if answered is not None else "does not answer"
            )
            raise _Unknown(
                f"its announcement holds, but it {how} when challenged now; "
                "--offline checks the announcement alone"
            )
        self._exam.examine(
            "fresh document",
            lambda: check_answer(answered, evidence, question.verifier, question.now),
            lambda root: f"over our nonce, at {root.attested.document.timestamp_s}",
        )

    def _add(self, of: str, verdict: Verdict) -> None:
        for check in verdict.checks:
            self._exam.add(Check(f"{of}: {check.name}", check.outcome, check.evidence))

    # -- in facts and words ---------------------------------------------------------------------------

    def _tell_instance(self, evidence: InstanceEvidence) -> None:
        pcrs = evidence.root.attested.pcrs
        self._facts |= {
            "instance": evidence.pubkey,
            "env": evidence.env.value,
            "trust": evidence.root.attested.anchor.trust,
            "repo": evidence.repo,
            "version": next((r.version for r in evidence.releases), evidence.version),
            "builder": evidence.builder,
            "launcher": evidence.launcher,
            "maintainers": [release.maintainer for release in evidence.releases],
            "pcrs": {f"PCR{index}": pcrs.hex(index) for index in (0, 1, 2, 4, 8)},
            "not_after": evidence.not_after,
        }

    def _tell_certified(self, subject: Event, certified: Certified) -> None:
        self._facts |= {"author": subject.pubkey, "image": certified.image}
        self._facts["role"] = (
            certified.certificates[-1].role.value if certified.certificates else "instance"
        )
        if subject.kind == kinds.CONTAINER:
            self._facts["state"] = subject.tag("state")
        told = self._facts.get("not_after")
        if isinstance(told, int):
            self._facts["not_after"] = min(told, certified.not_after)

    def _sentence(self, subject: Event, instance: InstanceEvidence) -> str:
        parts = [self._what(subject, instance), self._code(instance)]
        fresh = "proved just now over our nonce" if self._question.ask_instance else "as announced"
        parts.append(fresh)
        anchor = instance.root.attested.anchor
        if anchor.is_development:
            parts.append(f"by the development root {anchor.sha256[:16]}… that nobody else trusts")
            return f"VALID FOR DEVELOPMENT ONLY: {', '.join(parts)}."
        return f"VALID ({instance.env.value}): {', '.join(parts)}, in an AWS Nitro Enclave."

    def _what(self, subject: Event, instance: InstanceEvidence) -> str:
        on, author = npub(instance.pubkey), npub(subject.pubkey)
        match self._facts.get("role"):
            case "container":
                state = f" ({self._facts['state']})" if "state" in self._facts else ""
                return f"{author} is a container{state} of {self._facts['image']} on {on}"
            case "app":
                return f"{author} is an app in a container of {self._facts['image']} on {on}"
            case _:
                return f"{on} is an instance"

    def _code(self, instance: InstanceEvidence) -> str:
        """Who vouches for the code: signatures of keys that nobody expected are anybody's."""
        code = f"code with PCR0 {(instance.root.attested.pcrs.hex(0) or '')[:16]}…"
        signed = len({release.maintainer for release in instance.releases})
        if any(isinstance(policy, ExpectedMaintainers) for policy in self._question.policies):
            return f"{code}, signed by the maintainers that you named"
        if signed == 0:
            return f"{code}, signed by no maintainer"
        keys = "key" if signed == 1 else "keys"
        return f"{code}, signed by {signed} {keys} that you did not name (see --maintainer)"


def _check_same(certified: Certified, instance: InstanceEvidence) -> str:
    """The container was certified by the very code that the instance announces now."""
    theirs, ours = certified.root, instance.root
    if (theirs.attested.pcrs, theirs.env) != (ours.attested.pcrs, ours.env):
        raise BadCertificate(
            "the container was certified by other code than the instance announces"
        )
    return "certified by the code that is announced"
