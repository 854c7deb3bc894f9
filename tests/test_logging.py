"""Log lines: nothing secret leaves."""

from bot.logging import blank_secrets
from nips.keys import SecretKey
from nips.nip19 import nsec


def test_secrets_are_blanked_before_a_line_is_written():
    key = SecretKey.generate()
    line = {
        "a": f"got {nsec(key.reveal_secret())} and secret={key.reveal_secret().hex()}",
        "b": 7,
        "c": "Bearer abcdefghijklmnopqrstu",
    }
    written = str(blank_secrets(None, "", dict(line)))

    assert "nsec1" not in written
    assert key.reveal_secret().hex() not in written
    assert "abcdefghijklmnopqrstu" not in written
