"""Every ``_untrusted`` decoder: whatever comes, one family of exceptions, and quickly."""

import hashlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nips import bolt11, kinds, nip01, nip04, nip17, nip44, nip47, nip57, rpc
from nips.errors import BadInput, BadInvoice, BadMessage, BadRequest
from nips.event import parse_event_json_untrusted, parse_event_untrusted, sign_event
from nips.filters import parse_filter_untrusted
from nips.keys import SecretKey
from nips.nip19 import parse_pointer_untrusted, pubkey_from_npub_untrusted
from nips.nip46 import parse_bunker_uri

KEY, PEER = SecretKey.generate(), SecretKey.generate()
NOW = 1_800_000_000
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=20,
)


def only_bad_input(decode, value):
    try:
        decode(value)
    except BadInput:
        pass


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_frames(data):
    only_bad_input(nip01.decode_client_untrusted, data)
    only_bad_input(nip01.decode_relay_untrusted, data)
    only_bad_input(parse_event_json_untrusted, data)


@given(json_values)
def test_json_of_any_shape(value):
    only_bad_input(parse_event_untrusted, value)
    only_bad_input(parse_filter_untrusted, value)
    frame = orjson.dumps(["EVENT", value]) if _is_orjson(value) else b"[]"
    only_bad_input(nip01.decode_client_untrusted, frame)


def _is_orjson(value) -> bool:
    try:
        orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError):
        return False
    return True


@given(st.text(max_size=400))
def test_ciphertexts_keys_and_invoices(text):
    only_bad_input(lambda t: nip44.decrypt_untrusted(KEY, PEER.pubkey, t), text)
    only_bad_input(lambda t: nip04.decrypt_untrusted(KEY, PEER.pubkey, t), text)
    only_bad_input(pubkey_from_npub_untrusted, text)
    only_bad_input(bolt11.decode_invoice_untrusted, text)
    for prefix in ("", "npub1", "nprofile1", "nevent1", "note1", "nostr:"):
        only_bad_input(parse_pointer_untrusted, prefix + text)
    only_bad_input(parse_bunker_uri, text)
    only_bad_input(parse_bunker_uri, f"bunker://{PEER.pubkey}?{text}")
    only_bad_input(
        lambda t: nip57.parse_zap_request_untrusted(t, recipient=PEER.pubkey, amount_msat=1), text
    )


@given(st.text(max_size=400, alphabet=st.characters(exclude_categories=["Cs"])))
def test_plaintexts_that_are_validly_encrypted(text):
    event = sign_event(
        PEER, kinds.RPC, nip44.encrypt(PEER, KEY.pubkey, text or " "), [("p", KEY.pubkey)], NOW
    )
    for opener in (rpc.open_request_untrusted, rpc.open_reply_untrusted, nip47.open_reply_untrusted,
                   nip47.open_request_untrusted, nip47.open_notification_untrusted,
                   nip17.unwrap_message_untrusted):  # fmt: skip
        only_bad_input(lambda e, o=opener: o(KEY, e), event)


def test_a_deeply_nested_frame_is_refused_not_recursed_into():
    with pytest.raises(BadMessage):
        nip01.decode_client_untrusted("[" * 100_000)


def test_deeply_nested_params_are_refused():
    nested: object = 1
    for _ in range(200):
        nested = [nested]
    request = rpc.RpcRequest("1", "ping", {"x": nested})
    with pytest.raises(BadRequest, match="deep"):
        rpc.open_request_untrusted(
            KEY, rpc.build_request(PEER, kinds.RPC, KEY.pubkey, request, NOW)
        )


def test_a_result_that_is_too_large_becomes_an_error():
    to = sign_event(PEER, kinds.RPC, "x", [], NOW)
    reply = rpc.build_reply(KEY, to, rpc.RpcReply("1", "x" * 70_000, None), NOW)

    assert rpc.open_reply_untrusted(PEER, reply).error.startswith("invalid:")


def test_one_changed_byte_of_a_ciphertext_is_noticed():
    payload = nip44.encrypt(KEY, PEER.pubkey, "attack at dawn")
    for index in range(0, len(payload), 7):
        changed = payload[:index] + ("A" if payload[index] != "A" else "B") + payload[index + 1 :]
        with pytest.raises(BadInput):
            nip44.decrypt_untrusted(PEER, KEY.pubkey, changed)


# -- invoices ---------------------------------------------------------------------------------------


def invoice(amount_msat=21_000, description_hash=None, secret=b"\x01" * 32):
    payment_hash = hashlib.sha256(b"p").hexdigest()
    text = bolt11.encode_invoice(
        secret, currency="bcrt", amount_msat=amount_msat, payment_hash=payment_hash, now=NOW, expiry_s=600,
        description="d", description_hash=description_hash,
    )  # fmt: skip
    return bolt11.decode_invoice_untrusted(text)


def wanted(**changes):
    asked = {
        "amount_msat": 21_000,
        "description_hash": None,
        "payee": invoice().payee,
        "currency": "bcrt",
        "now": NOW,
    }
    return asked | changes


def test_the_right_invoice_passes():
    bolt11.check_invoice(invoice(), **wanted())


@pytest.mark.parametrize(
    ("made", "changes", "reason"),
    [
        (invoice(20_000), {}, "20000 msat"),
        (invoice(secret=b"\x02" * 32), {}, "somebody else"),
        (invoice(), {"currency": "bc"}, "network"),
        (invoice(), {"now": NOW + 601}, "expired"),
        (invoice(), {"description_hash": "ab" * 32}, "description"),
    ],
)
def test_a_wrong_invoice_is_refused(made, changes, reason):
    with pytest.raises(BadInvoice, match=reason):
        bolt11.check_invoice(made, **wanted(**changes))


@pytest.mark.parametrize(
    "prefix",
    [
        "lnbcrt1.5u",
        "lnbcrt15p",
        "lnbcrt0u",
        "lnbcrt01u",
        "lnbcrt99999999999999999",
        "lnxx1u",
        "lnbcrt1k",
    ],
)
def test_amounts_that_the_library_misreads_are_refused(prefix):
    good = invoice().bolt11
    with pytest.raises(BadInvoice):
        bolt11.decode_invoice_untrusted(prefix + "1" + good.rpartition("1")[2])


@given(st.integers(1, 10**12))
def test_amounts_round_trip(sat):
    assert sat * 1_000 == invoice(sat * 1_000).amount_msat if sat % (10**8 * 1000) else True


def test_mixed_case_is_refused():
    text = invoice().bolt11
    assert invoice().payment_hash == bolt11.decode_invoice_untrusted(text.upper()).payment_hash
    with pytest.raises(BadInvoice, match="mixed case"):
        bolt11.decode_invoice_untrusted("LN" + text[2:])


# -- zap requests -----------------------------------------------------------------------------------


def zap(**changes):
    tags = changes.pop("tags", [("p", KEY.pubkey), ("amount", "21000"), ("relays", "ws://x")])
    event = sign_event(PEER, changes.pop("kind", 9734), "hi", tags, NOW)
    return changes.pop("raw", event.json.decode())


def test_a_good_zap_request_passes_and_is_kept_byte_for_byte():
    raw = zap()
    parsed = nip57.parse_zap_request_untrusted(raw, recipient=KEY.pubkey, amount_msat=21_000)

    assert hashlib.sha256(raw.encode()).hexdigest() == parsed.description_hash


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (zap(kind=1), "kind 9734"),
        (zap(tags=[("p", PEER.pubkey), ("relays", "ws://x")]), "exactly one p"),
        (zap(tags=[("p", KEY.pubkey), ("p", KEY.pubkey), ("relays", "ws://x")]), "exactly one p"),
        (zap(tags=[("relays", "ws://x")]), "exactly one p"),
        (zap(tags=[("p", KEY.pubkey)]), "relays"),
        (zap(tags=[("p", KEY.pubkey), ("relays", "ws://x"), ("amount", "1")]), "amount"),
        (zap(tags=[("p", KEY.pubkey), ("relays", "ws://x"), ("e", "a"), ("e", "b")]), "one e tag"),
        (zap(tags=[("p", KEY.pubkey), ("relays", "ws://x"), ("a", "nonsense")]), "a tag"),
        (zap().replace("hi", "ho"), "not a valid event"),
        ("x" * 9_000, "too long"),
    ],
)
def test_a_bad_zap_request_is_refused(raw, reason):
    with pytest.raises(BadRequest, match=reason):
        nip57.parse_zap_request_untrusted(raw, recipient=KEY.pubkey, amount_msat=21_000)


def test_secrets_cannot_be_printed():
    key = SecretKey.generate()
    uri = nip47.parse_uri(nip47.format_uri(PEER.pubkey, "ws://127.0.0.1:1", key))
    shown = f"{key} {key!r} {uri!r} {[key]!r}"

    assert key.reveal_secret().hex() not in shown
    with pytest.raises(BadInput) as caught:
        nip47.parse_uri(f"nostr+walletconnect://nonsense?secret={key.reveal_secret().hex()}")
    assert key.reveal_secret().hex() not in str(caught.value)
    assert caught.value.__cause__ is None
