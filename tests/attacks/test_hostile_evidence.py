"""Evidence whose every part may hold any text, well signed by whoever may sign it: a verdict, never a crash.

Anybody can announce himself as a key-escrow service, or ask for his key to be verified: what he puts into his events
is read while a server boots.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nips import kinds
from nips.event import parse_event_json_untrusted, sign_event
from nips.keys import SecretKey
from nips.tee.certificates import Role, build_certificate
from nips.tee.container import ContainerFacts, build_container
from nips.tee.env import Env
from nips.tee.verification import verify_announcement, verify_container
from tests.evidence import NOW, Enclave
from tests.fakes import DIGEST

ENCLAVE = Enclave(env=Env.PROD)
CONTAINER, IMAGE = SecretKey.generate(), f"example.com/app@{DIGEST}"
FACTS = ContainerFacts(ENCLAVE.key.pubkey, ENCLAVE.key.pubkey, "deployed", 1, IMAGE, 1, (), None)
ANNOUNCEMENT = ENCLAVE.announcement()
CERTIFICATE = build_certificate(
    ENCLAVE.key, CONTAINER.pubkey, Role.CONTAINER, NOW, image=IMAGE, not_after=NOW + 9_000
)
CONTAINER_EVENT = build_container(CONTAINER, FACTS, (ENCLAVE.root(), CERTIFICATE), NOW)
AUTHORS = {
    key.pubkey: key
    for key in (ENCLAVE.key, ENCLAVE.builder, ENCLAVE.launcher, *ENCLAVE.maintainers, CONTAINER)
}
NESTED = frozenset({"tee_root", "tee_cert", "build", "instance", "release"})

# Any text, some of it of a form that gets further: long numbers, hex, base64, JSON, and what is none of these.
texts = (
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80)
    | st.text(alphabet="0123456789", max_size=20)
    | st.text(alphabet="0123456789abcdefABCDEF", max_size=130)
    | st.text(alphabet="AQgw+/=\n", max_size=60)
    | st.sampled_from(["١٢", "²", "{}", "[]", "null", "[" * 2_000, "MIIB", "prod", "\x00", "1e9", "-1", "AAAAé"])
)  # fmt: skip


def signed_again(event, content, tags):
    return sign_event(AUTHORS[event.pubkey], event.kind, content, tags, event.created_at)


@st.composite
def spoilt(draw, event, inside=True):
    """The event with one part of it replaced, somewhere at any depth, signed again by its author."""
    places = [i for i, tag in enumerate(event.tags) if len(tag) > 1]
    index = draw(st.sampled_from([-1, *places]))
    if index < 0:
        return signed_again(event, draw(texts), event.tags)
    tag, tags = list(event.tags[index]), list(event.tags)
    if inside and tag[0] in NESTED and draw(st.booleans()):
        tag[1] = draw(spoilt(parse_event_json_untrusted(tag[1]), inside=False)).json.decode()
    else:
        tag[draw(st.integers(1, len(tag) - 1))] = draw(texts)
    tags[index] = tuple(tag)
    return signed_again(event, event.content, tags)


@given(spoilt(ANNOUNCEMENT))
def test_announcements(event):
    verdict, evidence = verify_announcement(event, ENCLAVE.verifier, NOW, [])
    assert evidence is None
    assert verdict.reason


@given(spoilt(CONTAINER_EVENT))
def test_containers(event):
    verdict, certified = verify_container(event, ENCLAVE.verifier, NOW)
    assert (certified is not None) == verdict.is_valid


@pytest.mark.parametrize("content", ["é", "AAAA\u202e", "✓" * 4])
def test_a_document_that_is_not_ascii_is_none(content):
    """base64 raises another error for such text than for all other that is wrong: a server did not boot."""
    root = sign_event(ENCLAVE.key, kinds.ATTESTATION, content, [("t", "prod")], NOW)
    tags = [("tee_root", root.json.decode()), ("t", "prod")]
    event = sign_event(ENCLAVE.key, kinds.ANNOUNCEMENT, "", tags, NOW)
    verdict, _ = verify_announcement(event, ENCLAVE.verifier, NOW, [])
    assert "attestation: the document is not base64" in verdict.reason
