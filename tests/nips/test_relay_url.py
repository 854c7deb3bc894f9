"""One normal form for the many spellings of a relay's URL."""

import pytest

from nips.relay_url import normal_url, same_relay


@pytest.mark.parametrize(
    ("spelling", "normal"),
    [
        ("wss://relay.example.com", "wss://relay.example.com"),
        ("wss://relay.example.com:443/", "wss://relay.example.com"),
        ("WSS://RELAY.EXAMPLE.COM", "wss://relay.example.com"),
        ("ws://relay.example.com:80", "ws://relay.example.com"),
        ("ws://relay.example.com:443/", "ws://relay.example.com:443"),
        ("wss://Relay.example.com/Path", "wss://relay.example.com/Path"),
        ("wss://relay.example.com/path/", "wss://relay.example.com/path/"),
        ("ws://[2001:DB8::1]:80/", "ws://[2001:db8::1]"),
        ("ws://[::1]:7777/?a=B", "ws://[::1]:7777?a=B"),
        ("no url", "no url"),
        ("ws://x:notaport", "ws://x:notaport"),
        ("", ""),
    ],
)
def test_normal_form(spelling, normal):
    assert normal_url(spelling) == normal
    assert normal_url(normal) == normal, "normal stays normal"


def test_different_relays_stay_different():
    assert not same_relay("ws://a.example", "wss://a.example")
    assert not same_relay("wss://a.example/one", "wss://a.example/two")
    assert not same_relay("wss://a.example:444", "wss://a.example")
    assert same_relay("wss://A.example:443/", "wss://a.example")
