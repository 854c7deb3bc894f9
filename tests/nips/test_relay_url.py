"""One normal form for the many spellings of a relay's URL."""

import pytest

from nips.relay_url import normal_url


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
    assert normal_url("ws://a.example") != normal_url("wss://a.example")
    assert normal_url("wss://a.example/one") != normal_url("wss://a.example/two")
    assert normal_url("wss://a.example:444") != normal_url("wss://a.example")
    assert normal_url("wss://A.example:443/") == normal_url("wss://a.example")
