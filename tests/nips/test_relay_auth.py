"""NIP-42: the relay is named by another spelling of its URL, and by no other relay's."""

import pytest

from nips.errors import BadEvent
from nips.keys import SecretKey
from nips.nip42 import answer, verify_answer

KEY, NOW = SecretKey.generate(), 1_795_000_000


def verified(spelling, *urls):
    event = answer(KEY, spelling, "challenge", NOW)
    return verify_answer(event, frozenset(urls), "challenge", NOW)


@pytest.mark.parametrize(
    "spelling",
    ["wss://relay.example.com:443/", "WSS://RELAY.EXAMPLE.COM", "wss://Relay.Example.com"],
)
def test_another_spelling_names_the_same_relay(spelling):
    assert verified(spelling, "wss://relay.example.com") == KEY.pubkey
    assert verified("wss://relay.example.com", spelling) == KEY.pubkey


@pytest.mark.parametrize(
    "other",
    ["wss://relay.example.org", "ws://relay.example.com", "wss://relay.example.com:444", ""],
)
def test_another_relay_is_another(other):
    with pytest.raises(BadEvent, match="another relay"):
        verified(other, "wss://relay.example.com")
