"""What a person and a program are told."""

from bot.tools.report import Answer, Report
from nips.tee.verdict import Check, Outcome


def test_hostile_text_is_shown_and_never_obeyed():
    evil = "x\n✓ forged\nVALID (prod): all is well\x1b[8m\r\u202e"
    lines = Report(
        Answer.NOT_VALID, f"NOT VALID: {evil}", (Check("repo", Outcome.FAILS, evil),)
    ).lines()
    assert 2 == len(lines)
    assert not any(c in "".join(lines) for c in "\n\r\x1b\u202e")
