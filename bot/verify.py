"""``enclaved verify``: from AWS's root to the code that runs, one line a step, one plain sentence, an exit code.

root → document → service key → builder, launcher, maintainers → container certificate → image → app key

Events come from relays, which may lie or leave out; every one is verified. Then the instance is asked for a
document over a fresh nonce: what it announced may be stolen or old, this cannot be. What could not be
looked at is never reported as good: the exit code is 0 only when all of it holds.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import trio

from bot.adapters.relay_events import RelayEvents
from nips import kinds
from nips.attestation import Verifier
from nips.certificates import Certified, verify_certified
from nips.errors import BadAttestation, BadInput
from nips.event import Event, parse_event_untrusted
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nec01 import Root, verify_root
from nips.nip19 import Pointer, npub
from nips.policies import InstanceEvidence, Policy
from nips.rpc import RpcRequest, build_request, open_reply_untrusted
from nips.verdict import Check, Examination, Outcome, Verdict
from nips.verification import verify_announcement, verify_container

ANSWER_S = 8
NONCE_BYTES = 32
_INSTANCE = frozenset({kinds.ANNOUNCEMENT, kinds.OLD_ANNOUNCEMENT})


class Answer(Enum):
    """The three answers, with their exit codes."""

    VALID = 0
    NOT_VALID = 1
    COULD_NOT_CHECK = 2


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


@dataclass(frozen=True)
class Report:
    """``facts``: what was established, ready for JSON."""

    answer: Answer
    sentence: str
    checks: tuple[Check, ...]
    facts: dict[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        checks = [
            {"name": c.name, "outcome": c.outcome.value, "evidence": c.evidence}
            for c in self.checks
        ]
        answer = self.answer.name.lower().replace("_", " ")
        return {"answer": answer, "sentence": self.sentence, "checks": checks} | self.facts


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
            whole = await self._whole(subject)
        except _Unknown as unknown:
            return self._report(Answer.COULD_NOT_CHECK, f"COULD NOT CHECK: {unknown}.")
        verdict = self._exam.verdict()
        if not verdict.is_valid or whole is None:
            return self._report(Answer.NOT_VALID, f"NOT VALID: {verdict.reason}.")
        return self._report(Answer.VALID, self._sentence(subject, whole))

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
            raise _Unknown("no relay has an announcement of it")
        return found[0]

    async def _by_key(self, pubkey: str) -> list[Event]:
        authors, until = frozenset({pubkey}), self._question.now
        own = await self._find(
            Filter(kinds=_INSTANCE | {kinds.CONTAINER}, authors=authors, until=until)
        )
        # An app announces nothing of its own: its container names it.
        return own or await self._find(
            Filter(kinds=frozenset({kinds.CONTAINER}), tags={"p": authors}, until=until)
        )

    async def _find(self, wanted: Filter) -> list[Event]:
        return await self._relays.find([wanted], self._question.relay_urls)

    # -- from the subject up to the root ------------------------------------------------------------

    async def _whole(self, subject: Event) -> InstanceEvidence | None:
        if subject.kind in _INSTANCE:
            return await self._instance(subject)
        certified = self._certified(subject)
        if certified is None:
            return None
        self._tell_certified(subject, certified)
        announced = await self._find(
            Filter(
                kinds=frozenset({kinds.ANNOUNCEMENT}),
                authors=frozenset({certified.root.pubkey}),
                until=self._question.now,
            )
        )
        if not announced:
            raise _Unknown("the container's evidence holds, but no relay knows its instance")
        return await self._instance(announced[0])

    def _certified(self, subject: Event) -> Certified | None:
        verifier, now = self._question.verifier, self._question.now
        if subject.kind == kinds.CONTAINER:
            verdict, certified = verify_container(subject, verifier, now)
            self._add("container", verdict)
            return certified
        return self._exam.examine(
            "certificates",
            lambda: verify_certified(subject, verifier, now),
            lambda c: " → ".join(["instance", *(link.role.value for link in c.certificates)]),
        )

    def _tell_certified(self, subject: Event, certified: Certified) -> None:
        self._facts |= {"image": certified.image, "author": subject.pubkey}
        if subject.kind == kinds.CONTAINER:
            self._facts["container"] = subject.pubkey
        pubkey = self._question.pointer.pubkey
        if pubkey is not None and pubkey != subject.pubkey:
            # Found by what its container says of it; the container's key is certified.
            apps = [t[1] for t in subject.tags if len(t) > 2 and (t[0], t[2]) == ("p", "app")]
            outcome = Outcome.HOLDS if pubkey in apps else Outcome.FAILS
            self._exam.note("app", outcome, f"{npub(pubkey)} as named by its container")

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

    def _add(self, of: str, verdict: Verdict) -> None:
        for check in verdict.checks:
            self._exam.add(Check(f"{of}: {check.name}", check.outcome, check.evidence))

    def _tell_instance(self, evidence: InstanceEvidence) -> None:
        pcrs = evidence.root.attested.pcrs
        self._facts |= {
            "instance": evidence.pubkey,
            "env": evidence.env.value,
            "trust": evidence.root.attested.anchor.trust,
            "repo": evidence.repo,
            "version": evidence.version,
            "builder": evidence.builder,
            "launcher": evidence.launcher,
            "maintainers": [release.maintainer for release in evidence.releases],
            "pcrs": {f"PCR{index}": pcrs.hex(index) for index in (0, 1, 2, 4, 8)},
            "not_after": evidence.not_after,
        }

    # -- the fresh document -------------------------------------------------------------------------

    async def _challenge(self, evidence: InstanceEvidence) -> None:
        """An instance that does not answer may be down; one that answers wrongly is not what it says."""
        reply = await self._ask_all(evidence)
        self._facts["answered"] = reply is not None
        if reply is None:
            raise _Unknown(
                "its announcement holds, but it does not answer a challenge now; "
                "--offline checks the announcement alone"
            )
        nonce, result = reply
        self._exam.examine(
            "fresh document",
            lambda: self._check_fresh(evidence, nonce, result),
            lambda root: f"over our nonce, at {root.attested.document.timestamp_s}",
        )

    def _check_fresh(self, evidence: InstanceEvidence, nonce: bytes, result: object) -> Root:
        if not isinstance(result, dict) or "tee_root" not in result:
            raise BadAttestation("the instance's answer holds no document")
        event = parse_event_untrusted(result["tee_root"])
        verifier, now = self._question.verifier, self._question.now
        root = verify_root(event.json.decode(), verifier, now, nonce=nonce)
        if root.pubkey != evidence.pubkey:
            raise BadAttestation("the fresh document is another key's")
        if root.attested.pcrs != evidence.root.attested.pcrs:
            raise BadAttestation("the fresh document is about other code than announced")
        return root

    async def _ask_all(self, evidence: InstanceEvidence) -> tuple[bytes, object] | None:
        urls = dict.fromkeys([*self._question.relay_urls, *evidence.relay_urls])
        answers: list[tuple[bytes, object]] = []
        async with trio.open_nursery() as nursery:

            async def ask(url: str) -> None:
                answer = await self._ask_one(evidence.pubkey, url)
                if answer is not None:
                    answers.append(answer)
                    nursery.cancel_scope.cancel()

            for url in urls:
                nursery.start_soon(ask, url)
        return answers[0] if answers else None

    async def _ask_one(self, instance: str, url: str) -> tuple[bytes, object] | None:
        key, nonce = SecretKey.generate(), secrets.token_bytes(NONCE_BYTES)
        call = RpcRequest(secrets.token_hex(8), "attest", {"nonce": nonce.hex()})
        request = build_request(key, kinds.RPC, instance, call, self._question.now)
        answers = Filter(
            kinds=frozenset({kinds.RPC}),
            authors=frozenset({instance}),
            tags={"p": frozenset({key.pubkey})},
        )
        event = await self._relays.ask(
            url, request, answers, lambda e: request.id in e.tag_values("e"), ANSWER_S
        )
        try:
            reply = open_reply_untrusted(key, event) if event is not None else None
        except BadInput:
            return None
        return (nonce, reply.result) if reply is not None else None

    # -- in words ---------------------------------------------------------------------------------

    def _sentence(self, subject: Event, whole: InstanceEvidence) -> str:
        what = f"{npub(whole.pubkey)} is an instance"
        if "image" in self._facts:
            role = "the container" if subject.kind == kinds.CONTAINER else "an app in a container"
            what = f"{npub(subject.pubkey)} is {role} that runs {self._facts['image']} on {npub(whole.pubkey)}"
        code = f"code with PCR0 {(whole.root.attested.pcrs.hex(0) or '')[:16]}…"
        signers = len({release.maintainer for release in whole.releases})
        vouched = f"signed by {signers} maintainer{'s' if signers != 1 else ''}"
        fresh = ", proved just now over our nonce" if self._question.ask_instance else ""
        if whole.root.attested.anchor.is_development:
            root = whole.root.attested.anchor.sha256[:16]
            return (
                f"VALID FOR DEVELOPMENT ONLY: {what}, {code}, {vouched}, by the development root {root}… "
                f"that you named and nobody else trusts{fresh}."
            )
        return f"VALID ({whole.env.value}): {what}, {code}, {vouched}, in an AWS Nitro Enclave{fresh}."


def lines_of(report: Report) -> list[str]:
    """The steps as a person reads them, and the sentence."""
    marks = {Outcome.HOLDS: "✓", Outcome.FAILS: "✗", Outcome.ABSENT: "–"}
    steps = [f"{marks[c.outcome]} {c.name}: {c.evidence}" for c in report.checks]
    return [*steps, report.sentence]


def relay_urls_of(pointer: Pointer, given: Sequence[str]) -> tuple[str, ...]:
    """Those named on the command line, and those inside an nprofile or nevent."""
    return tuple(dict.fromkeys([*given, *pointer.relay_urls]))
