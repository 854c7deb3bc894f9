"""A lying parent: whatever it hands over, we show what holds, and run as prod only when all of it does."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.boot.standing import (
    BadMeta,
    EscrowTrust,
    NotProduction,
    ParentMeta,
    ReleasePolicy,
    env_for,
    judge_parent,
    load_release_policy,
    parse_meta_untrusted,
)
from nips.errors import BadInput
from nips.event import Event
from nips.keys import SecretKey
from nips.tee.env import Env
from nips.tee.nec04 import build_launcher_signature
from tests.evidence import HARDWARE, NOW, REPO, ZERO, Enclave, Hardware


@pytest.fixture(scope="module")
def enclave():
    return Enclave()


def policy_of(enclave):
    return ReleasePolicy(REPO, tuple(key.pubkey for key in enclave.maintainers))


def meta_of(enclave, *, prod=True, **changes):
    signed = enclave.signatures()
    given = {
        "builder": signed.builder,
        "launcher": signed.launcher,
        "releases": signed.releases,
        "prod": prod,
    }
    return ParentMeta(**given | changes)


def judge(enclave, meta, policy=None):
    policy = policy or policy_of(enclave)
    env, enclave.env = enclave.env, env_for(attested(enclave), prod=meta.prod)
    root, enclave.env = enclave.root(), env
    return judge_parent(meta, policy, root, enclave.key, enclave.verifier, NOW)


def attested(enclave):
    return enclave.verifier.verify(enclave.document(), NOW)


def test_an_honest_parent_makes_production(enclave):
    meta = meta_of(enclave)
    standing = judge(enclave, meta)
    assert (Env.PROD, ()) == (standing.env, standing.refused)
    assert (meta.builder, meta.launcher, meta.releases) == (
        standing.signatures.builder, standing.signatures.launcher, standing.signatures.releases,
    )  # fmt: skip


def test_without_a_claim_it_is_dev_and_needs_nothing(enclave):
    assert Env.DEV is judge(enclave, meta_of(enclave, prod=False)).env
    assert Env.DEV is judge(enclave, ParentMeta()).env
    assert Env.DEV is judge(enclave, ParentMeta(), ReleasePolicy("", ())).env


def lies(enclave):
    other, first = Enclave(), enclave.release(enclave.maintainers[0])
    fork = enclave.release(enclave.maintainers[1], repo="https://example.com/fork")
    for_dev = enclave.release(enclave.maintainers[1], env=Env.DEV)
    stranger = enclave.release(SecretKey.generate())
    return {
        "missing releases": {"releases": ()},
        "one maintainer is missing": {"releases": (first,)},
        "the same one twice": {"releases": (first, first)},
        "a release of another image": {"releases": other.signatures().releases},
        "a release of another repository": {"releases": (first, fork)},
        "a release by a stranger": {"releases": (first, stranger)},
        "a release for dev": {"releases": (first, for_dev)},
        "a forged release": {"releases": (first, json_changed(for_dev))},
        "no builder": {"builder": None},
        "another image's builder": {"builder": other.signatures().builder},
        "no launcher": {"launcher": None},
        "a swapped instance": {"launcher": build_launcher_signature(enclave.launcher, "i-0fff", "prod", NOW)},
        "a launcher for dev": {"launcher": build_launcher_signature(enclave.launcher, "i-0abcdef0123456789", "dev", NOW)},
        "builder and launcher swapped": {"builder": enclave.signatures().launcher, "launcher": enclave.signatures().builder},
    }  # fmt: skip


def json_changed(event):
    tags = tuple(("t", "prod") if tag[0] == "t" else tag for tag in event.tags)
    return Event(
        event.id, event.pubkey, event.created_at, event.kind, tags, event.content, event.sig
    )


@pytest.mark.parametrize("name", sorted(lies(Enclave())))
def test_a_lying_parent_makes_no_production(enclave, name):
    change = lies(enclave)[name]
    with pytest.raises(NotProduction) as caught:
        judge(enclave, meta_of(enclave, **change))
    assert str(caught.value)
    # The same lies without the claim: what does not hold is not shown.
    standing = judge(enclave, meta_of(enclave, prod=False, **change))
    assert Env.DEV is standing.env
    for release in standing.signatures.releases:
        assert release.pubkey in policy_of(enclave).maintainers


def test_prod_claimed_for_debug():
    debug = Enclave(env=Env.DEBUG)
    debug.pcrs |= dict.fromkeys((0, 1, 2), ZERO)
    with pytest.raises(NotProduction, match="debug enclave's"):
        judge(debug, meta_of(debug))
    assert Env.DEBUG is judge(debug, ParentMeta()).env


def test_prod_claimed_under_a_development_root():
    development = Enclave(
        hardware=Hardware(HARDWARE.authority, is_development=True), env=Env.DEBUG
    )
    with pytest.raises(NotProduction, match="debug enclave's"):
        judge(development, meta_of(development))
    assert Env.DEBUG is judge(development, meta_of(development, prod=False)).env


@pytest.mark.parametrize(
    "policy", [ReleasePolicy("", ()), ReleasePolicy(REPO, ()), ReleasePolicy("", ("a" * 64,))]
)
def test_an_image_that_names_nobody_is_never_production(enclave, policy):
    with pytest.raises(NotProduction):
        judge(enclave, meta_of(enclave), policy)


def test_the_checkouts_own_release_policy_names_nobody():
    assert ReleasePolicy("", ()) == load_release_policy()


ONE, TWO = SecretKey.generate().pubkey, SecretKey.generate().pubkey
GOOD = {
    "repo": "r",
    "signer_pubkeys": [ONE],
    "escrow": {"repo": "e", "signer_pubkeys": [TWO], "services": 2},
}


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}", "[]", "1", *(json.dumps(GOOD | change) for change in (
        {"repo": 1}, {"signer_pubkeys": ["zz"]}, {"signer_pubkeys": [ONE] * 2}, {"escrow": {}}, {"escrow": None},
        {"escrow": GOOD["escrow"] | {"services": 0}}, {"escrow": GOOD["escrow"] | {"signer_pubkeys": [1]}},
    ))],
)  # fmt: skip
def test_a_release_policy_that_is_none(text):
    with pytest.raises(BadMeta):
        load_release_policy(text)


def test_a_release_policy_names_maintainers_and_escrow():
    policy = load_release_policy(json.dumps(GOOD))
    assert ReleasePolicy("r", (ONE,), EscrowTrust("e", (TWO,), 2)) == policy


def test_what_the_parent_hands_over_is_parsed(enclave):
    signed = enclave.signatures()
    text = json.dumps({
        "build": signed.builder.as_dict(), "instance": signed.launcher.as_dict(),
        "releases": [e.as_dict() for e in signed.releases], "instanceAnnounceRelays": ["wss://a"], "prod": True,
    })  # fmt: skip
    assert ParentMeta(
        signed.builder, signed.launcher, signed.releases, ("wss://a",), True
    ) == parse_meta_untrusted(text)
    assert ParentMeta() == parse_meta_untrusted("{}")
    assert not parse_meta_untrusted('{"prod": "yes"}').prod
    for bad in ("", "[]", "[" * 100_000, '{"build": 1}', '{"releases": {"a": 1}}', '{"instanceAnnounceRelays": [1]}', '{"releases": [1]}',
                json.dumps({"releases": [signed.builder.as_dict()] * 17})):  # fmt: skip
        with pytest.raises(BadInput):
            parse_meta_untrusted(bad)


@given(st.text(max_size=100) | st.binary(max_size=100))
def test_any_meta(text):
    try:
        parse_meta_untrusted(text)
    except BadInput:
        pass
