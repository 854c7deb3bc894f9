"""What relays say, read leniently where the meaning is plain, and no further."""

import orjson
import pytest

from nips import nip01
from nips.errors import BadMessage

ID = "ab" * 32


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["OK", ID, True, ""], nip01.OkMessage(ID, True, "")),
        (["OK", ID, True], nip01.OkMessage(ID, True, "")),
        (["OK", ID, False, None, 1], nip01.OkMessage(ID, False, "")),
        (["EOSE", "s", 1], nip01.EoseMessage("s")),
        (["CLOSED", "s"], nip01.ClosedMessage("s", "")),
        (["CLOSED", "s", None], nip01.ClosedMessage("s", "")),
        (["CLOSED", "s", "error: x", 1], nip01.ClosedMessage("s", "error: x")),
        (["NOTICE"], nip01.NoticeMessage("")),
        (["NOTICE", "hi", 1], nip01.NoticeMessage("hi")),
        (["AUTH", "c", 1], nip01.AuthChallenge("c")),
        (["COUNT", "s", {"count": 3, "approximate": True}, 1], nip01.CountResult("s", 3)),
    ],
)
def test_more_or_fewer_elements_mean_what_they_plainly_mean(parts, message):
    assert nip01.decode_relay_untrusted(orjson.dumps(parts)) == message


@pytest.mark.parametrize(
    "parts",
    [["OK", ID], ["OK"], ["OK", ID, 1, ""], ["OK", ID, "true", ""], ["OK", 1, True, ""], ["EOSE"], ["EOSE", 1],
     ["CLOSED"], ["AUTH"], ["AUTH", None], ["EVENT", "s"], ["COUNT", "s"], ["NEW", "s"], []],
)  # fmt: skip
def test_what_means_nothing_is_refused(parts):
    with pytest.raises(BadMessage):
        nip01.decode_relay_untrusted(orjson.dumps(parts))
