"""``enclaved verify``: from AWS's root to the code that runs, one line a step, one plain sentence, an exit code.

root → document → service key → builder, launcher, maintainers → container certificate → image → app key

Events come from relays, which may lie, leave out, or show what its author took back long ago; every one is verified,
and looked for on all relays that are known. Then the instance is challenged, and asked about the container.
What could not be looked at is never reported as good: the exit code is 0 only when all of it holds.
"""

from dataclasses import dataclass

from bot.adapters.relay_events import RelayEvents
from bot.tools.challenge import Line, check_answer, line_to
from bot.tools.lookup import INSTANCE, Lookup
from bot.tools.report import Answer, Report, say_silent
from handlers.domain.lifecycle import State
from handlers.errors import Code
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
        self._lookup = Lookup(relays, question.relay_urls, question.now)
        self._exam = Examination()
        self._facts: dict[str, object] = {}

    async def report(self) -> Report:
        try:
            proved = await self._whole(await self._subject())
        except _Unknown as unknown:
            # What was seen to be wrong stays wrong, whatever else could not be seen.
            if not self._exam.verdict().failures:
                return self._report(Answer.COULD_NOT_CHECK, f"COULD NOT CHECK: {unknown}.")
            proved = None
        verdict = self._exam.verdict()
        if not verdict.is_valid or proved is None:
            return self._report(Answer.NOT_VALID, f"NOT VALID: {verdict.reason}.")
        return self._report(Answer.VALID, self._sentence(*proved))

    def _report(self, answer: Answer, sentence: str) -> Report:
        silent = self._lookup.silent
        if silent:
            self._facts["silent_relays"] = silent
            self._exam.note("relays", Outcome.ABSENT, say_silent(silent))
        return Report(answer, sentence, self._exam.verdict().checks, self._facts)

    # -- what is asked about ----------------------------------------------------------------------

    async def _subject(self) -> Event:
        """The event to verify: the one named, or the newest that tells what a key is."""
        if not self._question.relay_urls:
            raise _Unknown("no relay is known to ask; name one with --relay, or give an nprofile")
        pointer = self._question.pointer
        if pointer.event_id is not None:
            found = await self._lookup.find(Filter(ids=frozenset({pointer.event_id})))
        else:
            found = await self._lookup.by_key(pointer.pubkey or "")
        if not found.events:
            nobody = self._lookup.nobody_has(found, "nothing of it that could be verified")
            raise _Unknown(nobody)
        subject = found.events[0]
        if pointer.pubkey not in (None, subject.pubkey):
            self._exam.note("author", Outcome.FAILS, "the event is another key's than asked about")
        return subject

    async def _current(self, subject: Event, instance: InstanceEvidence) -> Event | None:
        """The subject, or for a key what it announced after it; None when its author took that back."""
        newest = await self._lookup.newest(subject, instance.relay_urls)
        gone = await self._lookup.deleted([subject, *newest], instance.relay_urls)
        live = [event for event in newest if event.id not in gone]
        by_id = self._question.pointer.event_id is not None
        if not live or (by_id and subject.id in gone):
            self._exam.note("deletion", Outcome.FAILS, "its own author deleted the announcement")
            return None
        if by_id and subject not in live:
            self._exam.note("deletion", Outcome.FAILS, "a newer announcement took its place")
            return None
        self._exam.note("deletion", Outcome.HOLDS, "no relay that answers knows of one")
        return subject if subject in live else live[0]

    # -- from the subject up to the root ------------------------------------------------------------

    async def _whole(self, subject: Event) -> tuple[Event, InstanceEvidence] | None:
        """What holds, and of which event."""
        if subject.kind in INSTANCE:
            instance = await self._instance(subject)
            return (subject, instance) if instance is not None else None
        certified = self._certified(subject)
        instance = await self._instance_of(certified) if certified is not None else None
        current = await self._current(subject, instance) if instance is not None else None
        if certified is None or instance is None or current is None:
            return None
        if current is not subject:
            certified = self._certified(current)
            if certified is None:
                return None
        self._tell_certified(current, certified)
        same = self._exam.examine("same instance", lambda: _check_same(certified, instance))
        if self._question.ask_instance and same is not None:
            line = self._line(instance)
            await self._challenge(line, instance)
            await self._ask_about_container(line, certified)
        return current, instance

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

    async def _instance_of(self, certified: Certified) -> InstanceEvidence | None:
        announced = await self._lookup.announcement_of(certified.root.pubkey)
        if not announced.events:
            nobody = self._lookup.nobody_has(announced, "nothing of its instance")
            raise _Unknown(
                f"the container's evidence holds, but no relay knows its instance: {nobody}"
            )
        return self._evidence(announced.events[0])

    async def _instance(self, announcement: Event) -> InstanceEvidence | None:
        evidence = self._evidence(announcement)
        if evidence is not None and self._question.ask_instance:
            await self._challenge(self._line(evidence), evidence)
        return evidence

    def _evidence(self, announcement: Event) -> InstanceEvidence | None:
        question = self._question
        verdict, evidence = verify_announcement(
            announcement, question.verifier, question.now, question.policies
        )
        self._add("instance", verdict)
        if evidence is not None:
            self._tell_instance(evidence)
        return evidence

    # -- what the instance says when asked ------------------------------------------------------------

    def _line(self, evidence: InstanceEvidence) -> Line:
        return line_to(self._relays, evidence, self._question.relay_urls, self._question.now)

    async def _challenge(self, line: Line, evidence: InstanceEvidence) -> None:
        """One that does not answer may be down or busy; one that answers wrongly is not what it says."""
        question = self._question
        answered = await line.challenge()
        self._facts["answered"] = answered is not None
        if answered is None or answered.reply.error is not None:
            raise _unasked(answered.reply.error if answered is not None else None)
        self._exam.examine(
            "fresh document",
            lambda: check_answer(answered, evidence, question.verifier, question.now),
            lambda root: f"over our nonce, at {root.attested.document.timestamp_s}",
        )

    async def _ask_about_container(self, line: Line, certified: Certified) -> None:
        """Certificates live for hours: the container that they speak of may be gone since."""
        if not certified.certificates:
            return
        container = certified.certificates[0].subject
        reply = await line.ask("balance", {"pubkey": container})
        if reply is None or (reply.error is not None and not _is_not_found(reply.error)):
            raise _unasked(reply.error if reply is not None else None, "asked about the container")
        if reply.error is not None:
            self._exam.note("still there", Outcome.FAILS, "the instance knows no such container")
            return
        match reply.result:
            case {"pubkey": str(pubkey), "detail": str(state)} if pubkey == container:
                pass
            case _:
                raise _unasked("its answer cannot be understood", "asked about the container")
        self._facts["state"] = state
        outcome = Outcome.FAILS if state == State.STOPPED.value else Outcome.HOLDS
        self._exam.note("still there", outcome, f"the instance says that it is {state}")

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


def _unasked(error: str | None, when: str = "challenged") -> _Unknown:
    how = f"refuses ({error})" if error is not None else "does not answer"
    return _Unknown(
        f"its announcement holds, but the instance {how} when {when} now; "
        "--offline checks the announcement alone"
    )


def _is_not_found(error: str) -> bool:
    return error.startswith(f"{Code.NOT_FOUND.value}:")


def _check_same(certified: Certified, instance: InstanceEvidence) -> str:
    """The container was certified by the very code that the instance announces now."""
    theirs, ours = certified.root, instance.root
    if theirs.pubkey != ours.pubkey:
        raise BadCertificate("the container was certified by another instance before")
    if (theirs.attested.pcrs, theirs.env) != (ours.attested.pcrs, ours.env):
        raise BadCertificate(
            "the container was certified by other code than the instance announces"
        )
    return "certified by the code that is announced"
