"""An announcement or a container is believed only when all of it holds; each test changes one thing."""

import base64
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from nips import kinds
from nips.errors import BadInput
from nips.event import parse_event_json_untrusted, sign_event
from nips.keys import SecretKey
from nips.tee.anchor import AWS_NITRO_ROOT_G1
from nips.tee.attestation import Verifier
from nips.tee.certificates import Role, build_certificate, verify_certificate, verify_certified
from nips.tee.container import ContainerFacts, build_container
from nips.tee.env import Env
from nips.tee.nec01 import build_root, verify_root
from nips.tee.nec03 import build_builder_signature, pcr8_of, verify_builder_certificate
from nips.tee.nec04 import build_launcher_signature, pcr4_of, verify_launcher_signature
from nips.tee.nec05 import verify_release_signature
from nips.tee.policies import (
    DebugPolicy,
    ExpectedMaintainers,
    ExpectedPcrs,
    ExpectedRepo,
    MaxAge,
)
from nips.tee.verdict import Check, Outcome, Verdict
from nips.tee.verification import verify_announcement, verify_container
from tests.evidence import (
    HARDWARE,
    INSTANCE_ID,
    NOW,
    REPO,
    ZERO,
    Enclave,
    Hardware,
    measured,
    real_event,
)
from tests.fakes import altered

IMAGE = "example.com/app@sha256:" + "ab" * 32


@pytest.fixture(scope="module")
def enclave():
    return Enclave()


def resigned(enclave, event, *, key=None, kind=None, now=None, **tags):
    """The event with some tags replaced (or dropped: None), signed again by its author."""
    kept = [tag for tag in event.tags if tag[0] not in tags]
    added = [(name, *value) for name, values in tags.items() for value in values or []]
    return sign_event(
        key or enclave.key,
        kind or event.kind,
        event.content,
        [*kept, *added],
        now or event.created_at,
    )


def failure(enclave, event, policies=None, now=None) -> str:
    verdict, evidence = enclave.verdict(event, policies, now)
    assert evidence is None
    assert not verdict.is_valid
    return verdict.reason


# -- what holds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [Env.PROD, Env.DEV])
def test_a_whole_announcement_holds(env):
    enclave = Enclave(env=env)
    expected = frozenset(key.pubkey for key in enclave.maintainers)
    policies = [DebugPolicy(), ExpectedMaintainers(expected), ExpectedRepo(REPO), MaxAge(10, NOW + 5),
                ExpectedPcrs({0: enclave.pcrs[0].hex(), 1: enclave.pcrs[1].hex().upper()})]  # fmt: skip
    verdict, evidence = enclave.verdict(policies=policies, now=NOW + 5)

    assert verdict.is_valid, verdict.reason
    assert (env, enclave.builder.pubkey, enclave.launcher.pubkey, expected) == (
        evidence.env, evidence.builder, evidence.launcher,
        {release.maintainer for release in evidence.releases},
    )  # fmt: skip
    assert NOW + 3 * 3600 == evidence.not_after
    assert all(check.evidence for check in verdict.checks)


def test_the_real_announcement_of_an_older_service_holds_at_its_time():
    event = real_event("nostr_announcement_63793.json")
    verifier = Verifier(AWS_NITRO_ROOT_G1)
    verdict, evidence = verify_announcement(event, verifier, event.created_at, [DebugPolicy()])

    assert verdict.is_valid, verdict.reason
    assert Env.DEV is evidence.env
    assert evidence.builder == evidence.launcher
    absent = [check.name for check in verdict.checks if check.outcome is Outcome.ABSENT]
    assert ["release"] == absent
    # Its tag promises an hour more than its certificates have.
    assert int(event.tag("expiration")) > evidence.not_after
    late, _ = verify_announcement(event, verifier, evidence.not_after + 1, [DebugPolicy()])
    assert "has expired" in late.reason


def test_real_builders_launchers_and_their_older_kinds():
    announcement = real_event("nostr_announcement_63793.json")
    verifier = Verifier(AWS_NITRO_ROOT_G1)
    _, evidence = verify_announcement(
        announcement, verifier, announcement.created_at, [DebugPolicy()]
    )
    launcher = real_event("nostr_instance_63796.json")
    assert evidence.launcher == verify_launcher_signature(launcher, evidence.root.attested.pcrs)
    for name in ("nostr_build_23794.json", "nostr_build_63795.json"):
        event = real_event(name)
        der = verify_builder_certificate(event.tag("cert"), event.pubkey, event.created_at)
        assert event.tag("PCR8") == pcr8_of(der).hex()
        with pytest.raises(BadInput, match="has expired"):
            verify_builder_certificate(event.tag("cert"), event.pubkey, 4_000_000_000)
        with pytest.raises(BadInput, match="another npub"):
            verify_builder_certificate(
                event.tag("cert"), SecretKey.generate().pubkey, event.created_at
            )


# -- one thing wrong -----------------------------------------------------------------------------------


def test_a_stolen_tee_root_under_another_key(enclave):
    thief = SecretKey.generate()
    stolen = resigned(enclave, enclave.announcement(), key=thief)
    assert "tee_root is another key's" in failure(enclave, stolen)
    # The thief signs the attestation event himself: then the document names another key.
    event = build_root(thief, enclave.document(), Env.PROD, NOW + 100, NOW).json.decode()
    both = resigned(enclave, enclave.announcement(), key=thief, tee_root=[(event,)])
    assert "another public key" in failure(enclave, both)


def test_nobody_signs_for_another(enclave):
    event = enclave.announcement()
    for changed in (
        altered(event, content="changed"),
        altered(event, sig=enclave.root_event().sig),
        altered(event, pubkey=SecretKey.generate().pubkey),
        altered(event, id="0" * 64),
    ):
        assert "announcement:" in failure(enclave, changed)


@pytest.mark.parametrize(
    ("at", "why"),
    [(NOW + 3 * 3600, "expir"), (NOW + 3 * 3600 + 1, "expired"), (NOW - 400, "not valid yet"), (2**40, "expired")],
)  # fmt: skip
def test_an_announcement_ends_with_its_document(enclave, at, why):
    assert why in failure(enclave, enclave.announcement(), now=at)


@pytest.mark.parametrize(
    ("expiration", "why"),
    [([(str(NOW + 60),), (str(NOW + 60),)], "there is none"), ([(str(NOW),)], "passed"), ([(str(NOW - 1),)], "passed"), (None, "there is none"), ([("soon",)], "there is none"),
     ([(str(NOW + 3 * 3600 + 1),)], "beyond the end of the leaf")],
)  # fmt: skip
def test_expiration_tags(enclave, expiration, why):
    event = enclave.announcement()
    assert failure(enclave, resigned(enclave, event, expiration=expiration))
    root = resigned(enclave, enclave.root_event(), expiration=expiration).json.decode()
    assert why in failure(enclave, resigned(enclave, event, tee_root=[(root,)]))


def test_events_from_the_future_and_from_two_repositories(enclave):
    event = enclave.announcement()
    assert "from the future" in failure(enclave, resigned(enclave, event, now=NOW + 301))
    more = [(REPO,), ("https://example.com/other",)]
    assert "more than one repository" in failure(enclave, resigned(enclave, event, r=more))


def test_a_builder_signs_for_the_repository_that_is_announced(enclave):
    other = build_builder_signature(
        enclave.builder,
        enclave.certificate,
        repo="https://example.com/other",
        version="1",
        env="prod",
        now=NOW,
    )
    assert "another repository" in failure(enclave, enclave.announcement(builder=other))


def test_old_tags_of_a_release_do_not_stand_in_for_new_ones_that_contradict(enclave):
    maintainer, pcrs = enclave.maintainers[0], enclave.root().attested.pcrs
    legacy = [(f"PCR{i}", pcrs.hex(i)) for i in range(3)]
    wrong = [("x", measured(n).hex(), f"PCR{i}") for i in range(3) for n in ("a", "b")]
    for tags in ([*legacy, *wrong], [*legacy, ("x", "00", "PCR0")]):
        event = sign_event(maintainer, kinds.RELEASE, "", [("r", REPO), ("t", "prod"), *tags], NOW)
        with pytest.raises(BadInput, match="another PCR0"):
            verify_release_signature(event, pcrs)
    old = sign_event(maintainer, kinds.OLD_RELEASE, "", [("r", REPO), ("t", "prod"), *legacy], NOW)
    assert REPO == verify_release_signature(old, pcrs).repo
    two = sign_event(maintainer, kinds.OLD_RELEASE, "", [("r", REPO), ("r", "x"), *legacy], NOW)
    with pytest.raises(BadInput, match="exactly one repository"):
        verify_release_signature(two, pcrs)


@pytest.mark.parametrize("t", [[("dev",)], [("debug",)], None, [("prod",), ("dev",)], [("test",)]])
def test_a_t_that_contradicts(enclave, t):
    event = enclave.announcement()
    assert "environment" in failure(enclave, resigned(enclave, event, t=t))
    root = resigned(enclave, enclave.root_event(), t=t).json.decode()
    agreed = resigned(enclave, event, t=t, tee_root=[(root,)])
    # Both saying dev is no contradiction: it claims less than it could.
    assert enclave.verdict(agreed)[0].is_valid is (t == [("dev",)])


def test_debug_is_refused_unless_allowed_and_cannot_call_itself_anything_else():
    enclave = Enclave(env=Env.DEBUG)
    enclave.pcrs |= dict.fromkeys((0, 1, 2), ZERO)
    assert "its host can read" in failure(enclave, enclave.announcement())
    verdict, evidence = enclave.verdict(policies=[DebugPolicy(allowed=True)])
    assert verdict.is_valid, verdict.reason
    assert Env.DEBUG is evidence.env
    for claimed in (Env.DEV, Env.PROD):
        enclave.env = claimed
        with pytest.raises(BadInput, match="the evidence says debug"):
            enclave.root()


def test_a_development_root_vouches_for_debug_and_nothing_else():
    hardware = Hardware(HARDWARE.authority, is_development=True)
    enclave = Enclave(hardware=hardware, env=Env.DEBUG)
    verdict, evidence = enclave.verdict(policies=[DebugPolicy(allowed=True)])
    assert verdict.is_valid, verdict.reason
    assert evidence.root.attested.is_debug
    for claimed in (Env.DEV, Env.PROD):
        root = build_root(enclave.key, enclave.document(), claimed, NOW + 100, NOW).json.decode()
        changed = resigned(
            enclave, enclave.announcement(), t=[(claimed.value,)], tee_root=[(root,)]
        )
        assert "the evidence says debug" in failure(enclave, changed, [DebugPolicy(allowed=True)])


@pytest.mark.parametrize("index", [0, 1, 2, 4, 8])
def test_announced_pcrs_are_the_attested_ones(enclave, index):
    event = enclave.announcement()
    others = [t[1:] for t in event.tags if t[0] == "x" and t[2] != f"PCR{index}"]
    changed = resigned(enclave, event, x=[*others, (measured("other").hex(), f"PCR{index}")])
    assert f"PCR{index}" in failure(enclave, changed)
    twice = resigned(
        enclave,
        event,
        x=[*[t[1:] for t in event.tags if t[0] == "x"], (measured("other").hex(), f"PCR{index}")],
    )
    assert "announced twice" in failure(enclave, twice)
    odd = [*[t[1:] for t in event.tags if t[0] == "x"], (ZERO.hex(), "PCR3")]
    assert "not to be told" in failure(enclave, resigned(enclave, event, x=odd))
    if index < 3:
        assert f"PCR{index}" in failure(enclave, resigned(enclave, event, x=others))


def test_the_builder_is_tied_to_the_image(enclave):
    pretender = SecretKey.generate()
    good = enclave.signatures().builder
    other = Enclave(builder=enclave.builder)
    cases = {
        "another npub": build_builder_signature(
            pretender, enclave.certificate, repo=REPO, version="1", env="prod", now=NOW
        ),
        "PCR8 is not": other.signatures().builder,
        "does not lead to PCR8": resigned(
            enclave,
            other.signatures().builder,
            key=enclave.builder,
            PCR8=[(enclave.pcrs[8].hex(),)],
        ),
        "not a builder": enclave.signatures().launcher,
        "does not parse": resigned(enclave, good, key=enclave.builder, cert=[("@@@",)]),
        "too long": resigned(enclave, good, key=enclave.builder, cert=[("A" * 9_000,)]),
        "id is not": altered(good, content="changed"),
    }
    for why, builder in cases.items():
        assert why in failure(enclave, enclave.announcement(builder=builder)), why
    unnamed = [t[1:] for t in enclave.announcement().tags if t[0] == "p" and t[2] != "builder"]
    assert "does not name its builder" in failure(
        enclave, resigned(enclave, enclave.announcement(), p=unnamed)
    )


def test_a_builders_certificate_must_be_his_own_and_for_nostr():
    builder = SecretKey.generate()
    mine, other = Enclave(builder=builder), Enclave()
    text = mine.signatures().builder.tag("cert")
    assert verify_builder_certificate(text, builder.pubkey, NOW)
    pem = f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"
    assert verify_builder_certificate(pem, builder.pubkey, NOW)
    for bad in (
        other.signatures().builder.tag("cert"),
        "",
        "AAAA",
        text[:-8],
        HARDWARE.leaf.der.hex(),
    ):
        with pytest.raises(BadInput):
            verify_builder_certificate(bad, builder.pubkey, NOW)
    for at, why in ((NOW - 3_600, "not valid yet"), (NOW + 740 * 86_400, "has expired")):
        with pytest.raises(BadInput, match=why):
            verify_builder_certificate(text, builder.pubkey, at)


@pytest.mark.parametrize("version", [1, 3, 4, 127])
def test_a_certificate_of_an_odd_version_is_refused_like_any_other(enclave, version):
    """The parser has an exception of its own for it, of no family."""
    der = bytearray(enclave.certificate.public_bytes(Encoding.DER))
    der[der.index(bytes.fromhex("a003020102")) + 4] = version
    with pytest.raises(BadInput):
        verify_builder_certificate(base64.b64encode(der).decode(), enclave.builder.pubkey, NOW)


def test_the_launcher_is_tied_to_the_machine(enclave):
    elsewhere = build_launcher_signature(enclave.launcher, "i-0123456789abcdef0", "prod", NOW)
    assert "PCR4 is not" in failure(enclave, enclave.announcement(launcher=elsewhere))
    swapped = enclave.signatures().builder
    assert "not a launcher" in failure(enclave, enclave.announcement(launcher=swapped))
    assert pcr4_of(INSTANCE_ID) == enclave.pcrs[4]


def test_releases(enclave):
    first, second = enclave.maintainers
    other_image = Enclave(image="other", maintainers=enclave.maintainers)
    good = enclave.release(first)
    cases = {
        "another repository": enclave.release(second, repo="https://example.com/fork"),
        "another PCR0": other_image.release(second),
        "not a release": enclave.signatures().launcher,
        "signature does not hold": altered(enclave.release(second), sig=good.sig),
    }
    for why, release in cases.items():
        assert why in failure(enclave, enclave.announcement(releases=(good, release))), why
    assert "more than" in failure(enclave, enclave.announcement(releases=(good,) * 17))
    both = frozenset(key.pubkey for key in enclave.maintainers)
    assert "not signed by" in failure(
        enclave, enclave.announcement(releases=(good,)), [ExpectedMaintainers(both)]
    )
    unsigned = Enclave(env=Env.DEV, maintainers=[])
    assert "not signed by" in failure(
        unsigned, unsigned.announcement(), [ExpectedMaintainers(both)]
    )


def test_production_is_signed_for_by_everybody(enclave):
    for missing in ({"builder": None}, {"launcher": None}, {"releases": ()}):
        assert "claims to be prod without" in failure(enclave, enclave.announcement(**missing))
    for_dev = Enclave(key=enclave.key, builder=enclave.builder, launcher=enclave.launcher,
                      maintainers=enclave.maintainers, env=Env.PROD, signs_for=Env.DEV)  # fmt: skip
    assert "not for prod" in failure(for_dev, for_dev.announcement())
    one = (
        enclave.release(enclave.maintainers[0]),
        enclave.release(enclave.maintainers[1], env=Env.DEV),
    )
    expected = ExpectedMaintainers(frozenset(key.pubkey for key in enclave.maintainers))
    assert "not for prod" in failure(enclave, enclave.announcement(releases=one), [expected])


@pytest.mark.parametrize(
    ("policies", "why"),
    [([], "no policy"), ([ExpectedMaintainers(frozenset())], "nobody can vouch"), ([ExpectedRepo("")], "no repository"),
     ([ExpectedRepo("https://example.com/fork")], "it is " + REPO), ([ExpectedPcrs({})], "no PCR"),
     ([ExpectedPcrs({0: "00" * 48})], "PCR0 differ"), ([ExpectedPcrs({31: "00" * 48})], "PCR31 differ"),
     ([MaxAge(60, NOW + 61)], "61 s old"), ([MaxAge(0, NOW)], "0 s old"), ([MaxAge(-1, NOW)], "0 s old")],
)  # fmt: skip
def test_policies_fail_closed(enclave, policies, why):
    assert why in failure(enclave, enclave.announcement(), policies)


def test_an_announcements_own_word_for_its_repository_is_no_evidence():
    unsigned = Enclave(env=Env.DEV, maintainers=[])
    assert "nobody signed it" in failure(unsigned, unsigned.announcement(), [ExpectedRepo(REPO)])


@pytest.mark.parametrize("name", ["tee_root", "build", "instance"])
def test_what_stands_twice_is_refused(enclave, name):
    event = enclave.announcement()
    twice = [(event.tag(name),), (event.tag(name),)]
    assert "exactly one" in failure(enclave, resigned(enclave, event, **{name: twice}))


@pytest.mark.parametrize("name", ["tee_root", "build", "instance", "release"])
@given(text=st.text(max_size=80, alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_in_a_tag(name, text):
    enclave = ANY
    event = resigned(enclave, ANNOUNCED, **{name: [(text,)]})
    verdict, evidence = enclave.verdict(event)
    assert not verdict.is_valid
    assert evidence is None


ANY = Enclave()
ANNOUNCED = ANY.announcement()


# -- kinds and tags that mean two things ------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [kinds.OLD_ANNOUNCEMENT, kinds.CONTAINER, kinds.ATTESTATION, kinds.CERTIFICATE, kinds.NOTE],
)
def test_another_kind_with_the_same_tags(enclave, kind):
    assert failure(enclave, resigned(enclave, enclave.announcement(), kind=kind))


def test_an_attestation_event_of_another_kind(enclave):
    for kind in (kinds.CERTIFICATE, kinds.ANNOUNCEMENT, kinds.OLD_ANNOUNCEMENT):
        root = resigned(enclave, enclave.root_event(), kind=kind).json.decode()
        changed = resigned(enclave, enclave.announcement(), tee_root=[(root,)])
        assert "not of kind 23793" in failure(enclave, changed)


def test_older_kinds_of_signatures_are_told_apart_by_their_tags(enclave):
    good = enclave.signatures()
    older = {
        "builder": resigned(enclave, good.builder, key=enclave.builder, kind=kinds.OLD_BUILDER),
        "launcher": resigned(
            enclave, good.launcher, key=enclave.launcher, kind=kinds.OLD_LAUNCHER
        ),
        "releases": tuple(
            resigned(enclave, event, key=key, kind=kinds.OLD_RELEASE)
            for event, key in zip(good.releases, enclave.maintainers, strict=True)
        ),
    }
    verdict, _ = enclave.verdict(enclave.announcement(**older))
    assert verdict.is_valid, verdict.reason
    image_signature = sign_event(
        enclave.builder, kinds.IMAGE_SIGNATURE, "", [("r", REPO), ("x", "ab" * 32), ("v", "1"), ("t", "prod")], NOW
    )  # fmt: skip
    assert "not a builder" in failure(enclave, enclave.announcement(builder=image_signature))
    image_release = resigned(
        enclave, image_signature, key=enclave.launcher, kind=kinds.IMAGE_RELEASE
    )
    assert "not a launcher" in failure(enclave, enclave.announcement(launcher=image_release))
    with pytest.raises(BadInput, match="not a release"):
        verify_release_signature(image_release, enclave.root().attested.pcrs)


# -- containers and certificates -----------------------------------------------------------------------------


def container(enclave, key=None, certificate=None, **facts):
    key = key or SecretKey.generate()
    root = enclave.root()
    given = ContainerFacts(enclave.key.pubkey, "a" * 64, "deployed", 1, IMAGE, 1, (), None)
    certificate = certificate or certify(enclave, key.pubkey)
    return build_container(key, replace(given, **facts), (root, certificate), NOW), key


def certify(enclave, subject, role=Role.CONTAINER, issuer=None, now=NOW, **options):
    options = {
        "image": IMAGE if role is Role.CONTAINER else None,
        "not_after": NOW + 3 * 3600,
    } | options
    return build_certificate(issuer or enclave.key, subject, role, now, **options)


def test_a_container_is_tied_to_its_image_and_its_instance(enclave):
    event, key = container(enclave)
    verdict, certified = verify_container(event, enclave.verifier, NOW)

    assert verdict.is_valid, verdict.reason
    assert (f"docker://{IMAGE}", enclave.key.pubkey, key.pubkey) == (
        certified.image, certified.root.pubkey, certified.certificates[-1].subject,
    )  # fmt: skip
    assert NOW + 3 * 3600 == certified.not_after == int(event.tag("expiration"))


def bad_container(enclave, event, now=NOW) -> str:
    verdict, certified = verify_container(event, enclave.verifier, now)
    assert certified is None
    return verdict.reason


def test_containers_that_are_not_what_they_say(enclave):
    event, key = container(enclave)
    other = Enclave()
    cases = {
        "announced image": resigned(enclave, event, key=key, r=[("docker://example.com/other@sha256:" + "cd" * 32, "docker")]),
        "announced instance": resigned(enclave, event, key=key, p=[(other.key.pubkey, "enclaved")]),
        "differ in t": resigned(enclave, event, key=key, t=[("dev",)]),
        "no announcement of a container": resigned(enclave, event, key=key, kind=kinds.ANNOUNCEMENT),
        "never says when": resigned(enclave, event, key=key, expiration=None),
        "another key than the author's": resigned(enclave, event, key=SecretKey.generate()),
        "gap": container(enclave, key, certify(enclave, key.pubkey, issuer=SecretKey.generate()))[0],
        "exactly one tee_root": resigned(enclave, event, key=key, tee_root=None),
    }  # fmt: skip
    for why, changed in cases.items():
        assert why in bad_container(enclave, changed), why
    assert "expired" in bad_container(enclave, event, NOW + 3 * 3600)
    no_certificate = resigned(enclave, event, key=key, tee_cert=None)
    assert "another key than the author's" in bad_container(enclave, no_certificate)


def test_a_certificate_by_itself(enclave):
    subject = SecretKey.generate().pubkey
    good = certify(enclave, subject)
    assert f"docker://{IMAGE}" == verify_certificate(good, NOW).image
    cases = {
        "not of kind": resigned(enclave, good, kind=kinds.ATTESTATION),
        "by digest": resigned(enclave, good, r=[("docker://example.com/app:latest",)]),
        "digest": resigned(enclave, good, r=None),
        "image by digest": resigned(
            enclave, good, r=[(f"docker://{IMAGE}",), (f"docker://{IMAGE}",)]
        ),
        "by digest$": resigned(enclave, good, r=[("docker://\x1b[2J@sha256:" + "ab" * 32,)]),
        "one subject": resigned(enclave, good, p=[(subject, "container"), (subject, "container")]),
        "its role": resigned(enclave, good, p=[(subject,)]),
        "unknown role": resigned(enclave, good, p=[(subject, "king")]),
        "subject and its role": resigned(enclave, good, p=[("zz", "container")]),
        "never says": resigned(enclave, good, expiration=None),
        "more than three hours": resigned(enclave, good, expiration=[(str(NOW + 4 * 3600),)]),
        "from the future": certify(enclave, subject, now=NOW + 400),
        "names an image": resigned(enclave, good, p=[(subject, "app")]),
    }
    for why, changed in cases.items():
        with pytest.raises(BadInput, match=why):
            verify_certificate(changed, NOW)
    with pytest.raises(BadInput, match="has expired"):
        verify_certificate(good, NOW + 3 * 3600)


def app_event(enclave, app, *certificates):
    tags = [("tee_root", enclave.root_event().json.decode())]
    tags += [("tee_cert", certificate.json.decode()) for certificate in certificates]
    return sign_event(app, kinds.NOTE, "hello from an app", tags, NOW)


def test_an_app_is_tied_to_its_container(enclave):
    box, app = SecretKey.generate(), SecretKey.generate()
    to_box = certify(enclave, box.pubkey)
    to_app = certify(enclave, app.pubkey, Role.APP, issuer=box)
    certified = verify_certified(app_event(enclave, app, to_box, to_app), enclave.verifier, NOW)
    assert [Role.CONTAINER, Role.APP] == [c.role for c in certified.certificates]
    assert f"docker://{IMAGE}" == certified.image

    short = certify(enclave, box.pubkey, not_after=NOW + 60)
    short_lived = verify_certified(app_event(enclave, app, short, to_app), enclave.verifier, NOW)
    assert NOW + 60 == short_lived.not_after
    cases = {
        "gap": app_event(enclave, app, to_app),
        "out of turn": app_event(enclave, app, certify(enclave, app.pubkey, Role.APP)),
        "has a gap": app_event(enclave, app, to_app, to_box),
        "loop": app_event(enclave, enclave.key, to_box, certify(enclave, enclave.key.pubkey, Role.APP, issuer=box)),
        "a loop": app_event(enclave, box, to_box, certify(enclave, box.pubkey, Role.APP, issuer=box)),
        "more certificates than roles": app_event(enclave, app, to_box, to_app, to_app),
        "another key than": app_event(enclave, box, to_box, to_app),
        "makes a container out of turn": app_event(enclave, app, to_box, certify(enclave, app.pubkey, issuer=box)),
    }  # fmt: skip
    for why, event in cases.items():
        with pytest.raises(BadInput, match=why):
            verify_certified(event, enclave.verifier, NOW)
    old = certify(enclave, box.pubkey, now=NOW - 3 * 3600)
    with pytest.raises(BadInput, match="expired"):
        verify_certified(app_event(enclave, app, old, to_app), enclave.verifier, NOW)


def test_the_instance_itself_needs_no_certificate(enclave):
    certified = verify_certified(app_event(enclave, enclave.key), enclave.verifier, NOW)
    assert ((), None) == (certified.certificates, certified.image)


def test_a_verdict_without_checks_is_not_valid():
    for checks in ((), (Check("builder", Outcome.ABSENT, "nobody claims it"),)):
        assert not Verdict(checks).is_valid
        assert "nothing was examined" == Verdict(checks).reason


def test_attestation_events_are_bounded(enclave):
    for content in ("", "A" * 10_001, "not base64!", "A" * 400):
        event = sign_event(enclave.key, kinds.ATTESTATION, content, enclave.root_event().tags, NOW)
        with pytest.raises(BadInput):
            verify_root(event.json.decode(), enclave.verifier, NOW)


def test_events_survive_their_journey_as_text(enclave):
    event = enclave.announcement()
    again = parse_event_json_untrusted(json.dumps(json.loads(event.json)))
    assert enclave.verdict(again)[0].is_valid
