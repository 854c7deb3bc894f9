"""Events, and what it takes to be a verified one."""

import subprocess
import sys
from dataclasses import replace

import pytest

from nips import crypto
from nips.errors import BadEvent
from nips.event import Event, VerifiedEvent, parse_event_json_untrusted, sign_event, verify_event
from nips.keys import SecretKey
from tests.conftest import REPO
from tests.fakes import altered

SIGNED = sign_event(SecretKey.generate(), 1, "hi", [("t", "x")], 1_800_000_000)


def test_what_is_signed_or_verified_is_verified():
    parsed = parse_event_json_untrusted(SIGNED.json)
    verified = verify_event(parsed)

    assert [VerifiedEvent, Event, VerifiedEvent] == [type(e) for e in (SIGNED, parsed, verified)]
    assert SIGNED == parsed == verified
    assert hash(SIGNED) == hash(parsed)


@pytest.mark.parametrize(
    "changes", [{"content": "ho"}, {"sig": "00" * 64}, {"pubkey": "1" * 64}, {"created_at": 1}]
)
def test_a_forgery_is_not_verified(changes):
    forged = altered(SIGNED, **changes)

    assert forged != SIGNED
    with pytest.raises(BadEvent):
        verify_event(forged)


def test_nothing_else_makes_a_verified_event():
    with pytest.raises(TypeError):
        VerifiedEvent(**SIGNED.as_dict())
    with pytest.raises(TypeError):
        replace(SIGNED, content="ho")


def test_a_signature_is_checked_once(monkeypatch):
    verified = verify_event(parse_event_json_untrusted(SIGNED.json))
    monkeypatch.setattr(crypto, "schnorr_verify", lambda *_: pytest.fail("checked again"))

    assert verify_event(verified) is verified


UNTYPED = """
from bot.server.doors import mention, rpc
from bot.server.inbox import Inbox
from handlers.context import Context
from nips.event import Event, VerifiedEvent

async def unverified(inbox: Inbox, ctx: Context, event: Event) -> None:
    await inbox.admit(event, 0)
    await rpc.answer(ctx, event, {rpc})
    await mention.answer(ctx, event, {mention})
    VerifiedEvent(event)
"""


def test_the_type_checker_keeps_unverified_events_from_inbox_and_doors(tmp_path):
    path = tmp_path / "unverified.py"
    path.write_text(UNTYPED.format(rpc="rate_limited=False", mention="rate_limited=False"))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml", str(path)],
        capture_output=True, text=True, cwd=REPO,
    )  # fmt: skip

    assert [8, 9, 10, 11] == [
        int(line.split(":")[1]) for line in done.stdout.splitlines() if "[arg-type]" in line
    ], done.stdout
