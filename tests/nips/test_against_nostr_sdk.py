"""nostr-sdk is the oracle: what we sign, encrypt and encode, it must accept, and the other way round."""

import json

import nostr_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nips import kinds, nip04, nip17, nip19, nip44
from nips.errors import BadInput
from nips.event import parse_event_json_untrusted, sign_event, verify_event
from nips.keys import SecretKey

# Any text that UTF-8 can carry.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=2_000)
ALICE, BOB = SecretKey.generate(), SecretKey.generate()


def sdk(key: SecretKey) -> nostr_sdk.Keys:
    return nostr_sdk.Keys.parse(key.reveal_secret().hex())


@given(texts, st.lists(st.lists(texts, min_size=1, max_size=3), max_size=4))
def test_our_events_verify_there(content, tags):
    event = sign_event(ALICE, kinds.NOTE, content, tags, 1_700_000_000)

    assert nostr_sdk.Event.from_json(event.json.decode()).verify()


@given(texts)
def test_their_events_verify_here(content):
    event = nostr_sdk.EventBuilder(nostr_sdk.Kind(1), content).finalize(sdk(ALICE))
    ours = parse_event_json_untrusted(event.as_json())
    verify_event(ours)

    assert (ALICE.pubkey, content) == (ours.pubkey, ours.content)


@given(texts)
def test_nip44_both_ways(text):
    theirs = sdk(BOB).nip44_decrypt(
        nostr_sdk.PublicKey.parse(ALICE.pubkey), nip44.encrypt(ALICE, BOB.pubkey, text)
    )
    ours = nip44.decrypt_untrusted(
        ALICE, BOB.pubkey, sdk(BOB).nip44_encrypt(nostr_sdk.PublicKey.parse(ALICE.pubkey), text)
    )

    assert (text, text) == (theirs, ours)


@given(texts)
def test_nip04_both_ways(text):
    theirs = sdk(BOB).nip04_decrypt(
        nostr_sdk.PublicKey.parse(ALICE.pubkey), nip04.encrypt(ALICE, BOB.pubkey, text)
    )
    ours = nip04.decrypt_untrusted(
        ALICE, BOB.pubkey, sdk(BOB).nip04_encrypt(nostr_sdk.PublicKey.parse(ALICE.pubkey), text)
    )

    assert (text, text) == (theirs, ours)


def test_our_gift_wraps_open_there_and_theirs_here():
    wrap = nip17.wrap_message(ALICE, BOB.pubkey, "hello", 1_700_000_000)
    opened = nostr_sdk.UnwrappedGift.from_gift_wrap(
        sdk(BOB), nostr_sdk.Event.from_json(wrap.json.decode())
    )
    assert ("hello", ALICE.pubkey) == (opened.rumor().content(), opened.sender().to_hex())

    theirs = nostr_sdk.nip17_make_private_msg(
        sdk(BOB), nostr_sdk.PublicKey.parse(ALICE.pubkey), "hi"
    )
    author, text, _ = nip17.unwrap_message_untrusted(
        ALICE, parse_event_json_untrusted(theirs.as_json())
    )
    assert (BOB.pubkey, "hi") == (author, text)


def test_a_rumor_in_anothers_name_is_refused():
    """NIP-17: without the check of the seal's author, anybody could speak for anybody."""
    from nips.event import event_id

    mallory = SecretKey.generate()
    tags = (("p", BOB.pubkey),)
    rumor = {
        "id": event_id(ALICE.pubkey, 1, 14, tags, "pay me").hex(), "pubkey": ALICE.pubkey, "created_at": 1,
        "kind": 14, "tags": tags, "content": "pay me",
    }  # fmt: skip
    seal = sign_event(mallory, 13, nip44.encrypt(mallory, BOB.pubkey, json.dumps(rumor)), [], 1)
    wrap = sign_event(
        mallory, 1059, nip44.encrypt(mallory, BOB.pubkey, seal.json.decode()), tags, 1
    )

    with pytest.raises(BadInput, match="did not sign"):
        nip17.unwrap_message_untrusted(BOB, wrap)


def test_npub_and_nsec_round_trip():
    assert ALICE.pubkey == nip19.pubkey_from_npub_untrusted(nip19.npub(ALICE.pubkey))
    assert SecretKey.parse(nip19.nsec(ALICE.reveal_secret())) == ALICE


def test_nip44_known_vector():
    """From the specification's own list: secrets 1 and 2, nonce 1, the letter a."""
    one = SecretKey(bytes(31) + b"\x01")
    two = SecretKey(bytes(31) + b"\x02")
    shared = nip44.conversation_key(one, two.pubkey)

    assert shared.hex() == "c41c775356fd92eadc63ff5a0dc1da211b268cbea22316767095b2871ea1412d"
    assert (
        nip44.decrypt_untrusted(
            two, one.pubkey, nip44.encrypt_with_nonce(shared, "a", bytes(31) + b"\x01")
        )
        == "a"
    )


def test_pointers_of_every_kind():
    from nips.nip19 import Pointer, parse_pointer_untrusted

    key, event_id = SecretKey.generate().pubkey, "ab" * 32
    public, relays = (
        nostr_sdk.PublicKey.parse(key),
        [nostr_sdk.RelayUrl.parse("wss://relay.example.com")],
    )
    urls, event = ("wss://relay.example.com",), nostr_sdk.EventId.parse(event_id)
    cases = {
        public.to_bech32(): Pointer(key, None, ()),
        key: Pointer(key, None, ()),
        nostr_sdk.Nip19Profile(public, relays).to_bech32(): Pointer(key, None, urls),
        nostr_sdk.Nip19Event(event, public, None, relays).to_bech32(): Pointer(
            key, event_id, urls
        ),
        nostr_sdk.Nip19Event(event, None, None, []).to_bech32(): Pointer(None, event_id, ()),
        event.to_bech32(): Pointer(None, event_id, ()),
    }
    for text, pointer in cases.items():
        assert (
            pointer == parse_pointer_untrusted(text) == parse_pointer_untrusted(f" nostr:{text} ")
        )
