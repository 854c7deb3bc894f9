"""What an operator says of the embedded relay."""

import pytest

from bot.config import ConfigError, load
from nips.keys import SecretKey
from nips.nip19 import npub
from nips.nip47 import format_uri

ONE, TWO = (SecretKey.generate().pubkey for _ in range(2))
URI = format_uri(ONE, "ws://127.0.0.1:1", SecretKey.generate())


def relays(tmp_path, text):
    path = tmp_path / "enclaved.toml"
    path.write_text(f"[relays]\n{text}")
    return load(path, {"ENCLAVED_WALLET_URI": URI}).relays


def test_it_is_closed_unless_told_otherwise(tmp_path):
    assert not relays(tmp_path, "embedded_port = 7777").embedded_open
    assert relays(tmp_path, "embedded_open = true").embedded_open


def test_whom_it_serves_by_npub_or_hex(tmp_path):
    told = relays(tmp_path, f'embedded_serves = ["{ONE}", "{npub(TWO)}"]')
    assert told.served_pubkeys() == {ONE, TWO}
    with pytest.raises(ConfigError, match=r"\[relays\] embedded_serves"):
        relays(tmp_path, 'embedded_serves = ["npub1nobody"]')


def test_limits_are_a_section_of_their_own(tmp_path):
    told = relays(
        tmp_path, "[relays.embedded_limits]\nmax_stored_events = 7\nquery_s = 0.5"
    ).embedded_limits
    assert (told.max_stored_events, told.query_s) == (7, 0.5)
