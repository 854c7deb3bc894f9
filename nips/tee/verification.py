"""All that must hold before an instance or a container is believed, in one place.

`verify_announcement` makes every check of NEC-01 to NEC-05 on an announcement (13793, or the older
63793), `verify_container` the ones on a container's (63797). Both return a `Verdict`; facts come along
only when all of it holds.
"""

from collections.abc import Callable, Sequence

from nips import kinds
from nips.errors import BadCertificate
from nips.event import Event, parse_event_json_untrusted
from nips.tee.attestation import Attested, Pcrs, Verifier
from nips.tee.certificates import Certified, check_is_current, only_tag, verify_certified
from nips.tee.env import BadEnv, Env, env_of, signs_for
from nips.tee.nec01 import (
    Root,
    check_env,
    check_expiration,
    check_public_key,
    document_of,
    verify_root,
)
from nips.tee.nec02 import TOLD_PCRS
from nips.tee.nec03 import verify_builder_signature
from nips.tee.nec04 import verify_launcher_signature
from nips.tee.nec05 import MEASURED, Release, measured_tag, verify_release_signature
from nips.tee.policies import InstanceEvidence, Policy, apply_policies
from nips.tee.verdict import Examination, Outcome, Verdict

MAX_RELEASES = 16


def verify_announcement(
    event: Event, verifier: Verifier, now: int, policies: Sequence[Policy]
) -> tuple[Verdict, InstanceEvidence | None]:
    """Every check, then the policies. The evidence is None unless the verdict is valid."""
    exam = Examination()
    root = _authentic(exam, event, verifier, now)
    if root is None:
        return exam.verdict(), None
    pcrs = root.attested.pcrs
    exam.examine("measurements", lambda: _check_measurements(event, root))
    builder = _signed(
        exam, event, "build", "builder", lambda e: _check_builder(e, event, pcrs, now)
    )
    launcher = _signed(
        exam, event, "instance", "launcher", lambda e: verify_launcher_signature(e, pcrs)
    )
    releases = _releases(exam, event, root)
    if root.env is Env.PROD:
        exam.examine("production", lambda: _check_production(event))
    evidence = InstanceEvidence(
        event.pubkey,
        root,
        event.tag("r"),
        event.tag("v"),
        builder,
        launcher,
        releases,
        tuple(event.tag_values("relay")),
    )
    for check in apply_policies(policies, evidence):
        exam.add(check)
    verdict = exam.verdict()
    return verdict, evidence if verdict.is_valid else None


def verify_container(
    event: Event, verifier: Verifier, now: int
) -> tuple[Verdict, Certified | None]:
    """A container's announcement, up to its instance's key. What that instance is, is another question."""
    exam = Examination()
    exam.examine("container", lambda: _check_container_event(event, now), lambda _: event.pubkey)
    certified = exam.examine(
        "certificates",
        lambda: verify_certified(event, verifier, now),
        lambda c: c.path,
    )
    if certified is not None:
        exam.examine("image", lambda: _check_image(event, certified))
        exam.examine("instance", lambda: _check_instance(event, certified))
    verdict = exam.verdict()
    return verdict, certified if verdict.is_valid else None


# -- announcements ------------------------------------------------------------------------------------


def _authentic(exam: Examination, event: Event, verifier: Verifier, now: int) -> Root | None:
    """The event is its author's, and the author's key lives in an attested enclave."""
    if exam.examine("announcement", lambda: _check_event(event, now), lambda _: event.id) is None:
        return None
    is_old = event.kind == kinds.OLD_ANNOUNCEMENT
    find = _old_root if is_old else _root
    root = exam.examine("attestation", lambda: find(event, verifier, now), _say_root)
    if root is not None:
        exam.examine("expiration", lambda: _check_life(event, root, now), lambda _: "not passed")
        exam.examine("environment", lambda: _check_env(event, root), lambda env: env.value)
    return root


def _check_event(event: Event, now: int) -> Event:
    if event.kind not in (kinds.ANNOUNCEMENT, kinds.OLD_ANNOUNCEMENT):
        raise BadCertificate("the event is no announcement of an instance")
    check_is_current(event, now)
    if len(event.tag_values("r")) > 1:
        raise BadCertificate("the announcement names more than one repository")
    return event


def _root(event: Event, verifier: Verifier, now: int) -> Root:
    root = verify_root(only_tag(event, "tee_root"), verifier, now)
    if root.pubkey != event.pubkey:
        raise BadCertificate("tee_root is another key's")
    return root


def _old_root(event: Event, verifier: Verifier, now: int) -> Root:
    """Before ``tee_root``, the document stood in the announcement's content."""
    if event.has_tag("tee_root"):
        raise BadCertificate("an announcement of the old kind has a tee_root of the new one")
    attested = verifier.verify(document_of(event.content), now)
    check_public_key(attested, event.pubkey)
    return Root(event, attested, env_of(event))


def _say_root(root: Root) -> str:
    document = root.attested.document
    return f"{root.attested.anchor.trust}, {document.module_id}, signed at {document.timestamp_s}"


def _check_life(event: Event, root: Root, now: int) -> Attested:
    # Writers of the older kind let the tag outlive the certificates; the document's own end was checked.
    if event.kind != kinds.OLD_ANNOUNCEMENT:
        check_expiration(event, root.attested, now)
    return root.attested


def _check_env(event: Event, root: Root) -> Env:
    env = env_of(event)
    if env is not root.env:
        raise BadEnv("the announcement and its attestation differ in t")
    check_env(env, root.attested)
    return env


def _check_measurements(event: Event, root: Root) -> str:
    pcrs = root.attested.pcrs
    told = [t[2] for t in event.tags if len(t) > 2 and t[0] == "x"]
    if len(told) != len(set(told)) or not set(told) <= {f"PCR{index}" for index in TOLD_PCRS}:
        raise BadCertificate("a PCR is announced twice, or one that is not to be told")
    for index in TOLD_PCRS:
        required = index in MEASURED or f"PCR{index}" in told
        if required and measured_tag(event, index) != pcrs.hex(index):
            raise BadCertificate(f"the announced PCR{index} is not the attested one")
    return f"PCR0 {pcrs.hex(0)}"


def _check_builder(build: Event, event: Event, pcrs: Pcrs, now: int) -> str:
    if build.tag("r") not in (None, event.tag("r")):
        raise BadCertificate("the builder signed for another repository than announced")
    return verify_builder_signature(build, pcrs, now)


def _signed(
    exam: Examination, event: Event, name: str, role: str, verify: Callable[[Event], str]
) -> str | None:
    """A signature that an announcement may carry once."""
    if not event.tag_values(name):
        exam.note(role, Outcome.ABSENT, "nobody claims it")
        return None

    def rule() -> str:
        pubkey = verify(parse_event_json_untrusted(only_tag(event, name)))
        if pubkey not in _marked(event, role):
            raise BadCertificate(f"the announcement does not name its {role}")
        return pubkey

    return exam.examine(role, rule)


def _releases(exam: Examination, event: Event, root: Root) -> tuple[Release, ...]:
    texts = event.tag_values("release")
    if not texts:
        exam.note("release", Outcome.ABSENT, "no maintainer signed")
        return ()

    def rule() -> tuple[Release, ...]:
        if len(texts) > MAX_RELEASES:
            raise BadCertificate(f"there are more than {MAX_RELEASES} release signatures")
        found = tuple(
            verify_release_signature(parse_event_json_untrusted(text), root.attested.pcrs)
            for text in texts
        )
        if any(release.repo != event.tag("r") for release in found):
            raise BadCertificate("a release is for another repository than announced")
        return found

    return exam.examine("release", rule, lambda r: ", ".join(x.maintainer for x in r)) or ()


def _check_production(event: Event) -> str:
    """Production is what builder, launcher and maintainers all signed for."""
    for name in ("build", "instance", "release"):
        texts = event.tag_values(name)
        if not texts:
            raise BadCertificate(f"it claims to be prod without a {name} signature")
        if any(Env.PROD not in signs_for(parse_event_json_untrusted(text)) for text in texts):
            raise BadCertificate(f"the {name} signature is not for prod")
    return "builder, launcher and maintainers signed for prod"


def _marked(event: Event, role: str) -> list[str]:
    return [t[1] for t in event.tags if len(t) > 2 and t[0] == "p" and t[2] == role]


# -- containers ---------------------------------------------------------------------------------------


def _check_container_event(event: Event, now: int) -> Event:
    if event.kind != kinds.CONTAINER:
        raise BadCertificate("the event is no announcement of a container")
    check_is_current(event, now)
    if not event.has_tag("expiration"):
        raise BadCertificate("the announcement never says when it expires")
    return event


def _check_image(event: Event, certified: Certified) -> str:
    named = [t[1] for t in event.tags if len(t) > 2 and t[0] == "r" and t[2] == "docker"]
    if certified.image is None or named != [certified.image]:
        raise BadCertificate("the announced image is not the certified one")
    return certified.image


def _check_instance(event: Event, certified: Certified) -> str:
    if _marked(event, "enclaved") != [certified.root.pubkey]:
        raise BadCertificate("the announced instance is not the one that certifies")
    if env_of(event) is not certified.root.env:
        raise BadEnv("the announcement and its attestation differ in t")
    return certified.root.pubkey
