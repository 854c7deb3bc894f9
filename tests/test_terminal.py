"""What others wrote is shown and never obeyed: every control and format character, on every way to a terminal."""

import json
import subprocess
import sys
import unicodedata

import pytest

from bot import terminal
from bot.devstack.demo import Transcript
from bot.terminal import printable, printable_json
from bot.tools import cli
from bot.tools.client import CallRefused
from bot.tools.report import Answer, Report
from bot.tools.signer import SignerProblem
from nips.errors import BadInput
from nips.event import sign_event
from nips.keys import SecretKey
from nips.tee.verdict import Check, Outcome
from tests.conftest import REPO

# Controls (C0, C1, DEL), format characters (bidi, zero width, tags), lone surrogates, separators of lines. From the last
# to the first: a high surrogate before a low one would be a pair, and no longer alone.
SHAPELESS = "".join(
    c for c in map(chr, range(sys.maxunicode, -1, -1)) if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
)  # fmt: skip
EVIL = f"before{SHAPELESS}\n✓ forged: VALID (prod)\nafter"


def is_safe(text):
    """Nothing but what has a shape, and the lines that we made."""
    bad = [c for c in text if not c.isprintable() and c != "\n"]
    return bad == [] and "before" in text and "after" in text and "\n✓ forged" not in text


def test_the_characters_of_these_tests_are_all_that_there_are():
    assert {"\x1b", "\x9b", "\x7f", "\r", "\x00", "\u202e", "\u2066", "\u200b", "\u200d", "\ufeff", "\U000e0041",
            "\u2028"} <= set(SHAPELESS)  # fmt: skip
    assert {"Cc": 65, "Cs": 2_048} == {
        kind: sum(unicodedata.category(c) == kind for c in SHAPELESS) for kind in ("Cc", "Cs")
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\x1b[8m", r"\x1b[8m"), ("\x9b2J", r"\x9b2J"), ("a\u202eb", r"a\u202eb"), ("\ud800", r"\ud800"), ("\n", r"\n"),
     ("\U000e0041", r"\U000e0041"), ("\x7f", r"\x7f"), ("Zürich ✓ 日本 😀", "Zürich ✓ 日本 😀"), ("", "")],
)  # fmt: skip
def test_an_escape_is_seen(text, shown):
    assert shown == printable(text)


def test_every_shapeless_character_is_spelt_out():
    for c in SHAPELESS:
        assert printable(c).isascii(), hex(ord(c))
        assert printable(c).startswith("\\"), hex(ord(c))
        assert (c if c == "\n" else printable(c)) == printable(c, block=True)


@pytest.mark.parametrize("indent", [None, 2])
def test_json_stays_json_and_means_the_same(indent):
    for value in (EVIL, {EVIL: [EVIL, 1]}, [*SHAPELESS]):
        text = printable_json(json.dumps(value, ensure_ascii=False, indent=indent))
        assert value == json.loads(text)
        assert [] == [c for c in text if not c.isprintable() and c != "\n"]


# -- every way to a terminal ------------------------------------------------------------------------------


def called(monkeypatch, outcome):
    """`enclaved call`, with an instance that answers so."""

    def run(*_):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr("trio.run", run)


@pytest.fixture
def call(tmp_path, monkeypatch):
    key = tmp_path / "me.key"
    key.write_text(SecretKey.generate().reveal_secret().hex())

    def call(outcome):
        called(monkeypatch, outcome)
        service = SecretKey.generate().pubkey
        options = ["call", "--relay", "ws://127.0.0.1:1", "--to", service, "--key", str(key)]
        return cli.main([*options, "logs"])

    return call


def test_the_result_of_a_call(call, capsys):
    result = {"logs": EVIL, EVIL: [EVIL]}
    assert 0 == call(result)
    out = capsys.readouterr().out
    assert is_safe(out)
    assert result == json.loads(out)


@pytest.mark.parametrize(
    "error",
    [CallRefused(EVIL), SignerProblem(EVIL), BadInput(EVIL), OSError(2, EVIL, EVIL), ExceptionGroup("x", [CallRefused(EVIL)])],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_errors_are_one_safe_line(call, capsys, error):
    assert 1 == call(error)
    err = capsys.readouterr().err
    assert is_safe(err)
    assert err.startswith("enclaved: error: ")
    assert 1 == err.count("\n")


def test_arguments_that_people_paste(capsys):
    with pytest.raises(SystemExit):
        cli.main(["key", "x", EVIL])
    assert is_safe(capsys.readouterr().err)
    assert 2 == cli.main(["verify", EVIL])
    err = capsys.readouterr().err
    assert err.startswith("enclaved: error: ")
    assert 1 == err.count("\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_report(call, capsys, as_json):
    report = Report(
        Answer.NOT_VALID,
        f"NOT VALID: {EVIL}.",
        (Check(EVIL, Outcome.FAILS, EVIL),),
        {"repo": EVIL},
    )
    key = SecretKey.generate().pubkey
    call({})
    capsys.readouterr()
    called_with = pytest.MonkeyPatch()
    called(called_with, report)
    try:
        assert 1 == cli.main(["verify", key, *(["--json"] if as_json else [])])
    finally:
        called_with.undo()
    out = capsys.readouterr().out
    assert is_safe(out)
    if as_json:
        assert report.sentence == json.loads(out)["sentence"]
    else:
        assert 2 == out.count("\n")


def test_a_signed_event_and_what_is_told_beside_it(capsys):
    text = EVIL.encode("utf-8", "ignore").decode()
    event = sign_event(SecretKey.generate(), 1, text, [("t", text)], 1_700_000_000)
    terminal.say_json_text(event.json.decode())
    out = capsys.readouterr().out
    assert is_safe(out)
    assert text == json.loads(out)["content"]
    terminal.tell(EVIL)
    err = capsys.readouterr().err
    assert is_safe(err)
    assert 1 == err.count("\n")


def test_the_transcript_of_the_demo(capsys):
    transcript = Transcript()
    for show in (transcript.say, transcript.done, lambda text: transcript.step(1, text)):
        show(EVIL)
        assert is_safe(capsys.readouterr().out)


def test_a_crash(capsys):
    try:
        raise RuntimeError(EVIL) from ExceptionGroup("x", [ValueError(EVIL)])
    except RuntimeError as error:
        terminal.tell_crash(type(error), error, error.__traceback__)
    err = capsys.readouterr().err
    assert [] == [c for c in err if not c.isprintable() and c != "\n"]
    assert "Traceback" in err


def test_a_crash_of_the_program_is_told_by_that():
    code = "import sys; sys.argv = ['enclaved', 'key', 'x']\nimport bot.tools.cli, bot.__main__ as m\n"
    code += "def main(): raise RuntimeError('before\\x1b[8m\\u202eafter')\n"
    code += "bot.tools.cli.main = main\nm.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=REPO, check=False)
    assert 1 == done.returncode
    assert rb"before\x1b[8m\u202eafter" in done.stderr
    assert b"\x1b" not in done.stderr


def test_a_terminal_that_knows_few_characters_gets_no_traceback():
    code = "from bot.terminal import say; say('✓ Zürich')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=REPO, check=False,
        env={"PYTHONIOENCODING": "latin-1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (0, "\\u2713 Zürich\n".encode("latin-1")) == (done.returncode, done.stdout)


# -- the log ------------------------------------------------------------------------------------------------


WRITE = """
import logging, structlog
import bot.logging
from tests.test_terminal import EVIL

bot.logging.set_up({form!r}, "info")
logger = structlog.get_logger()
logger.info(EVIL, reason=EVIL, many=[EVIL], error=ValueError(EVIL), inside={{EVIL: EVIL}})
try:
    raise ValueError(EVIL)
except ValueError:
    logger.exception("failed")
logging.getLogger("lib").warning("server said %s", EVIL)
"""


def logged(form):
    """What a process writes into its log whose records are full of strangers' text."""
    done = subprocess.run(
        [sys.executable, "-c", WRITE.format(form=form)], capture_output=True, cwd=REPO, check=True
    )
    assert b"" == done.stdout
    return done.stderr.decode()


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_log_shows_what_strangers_wrote_and_obeys_none_of_it(form):
    told = logged(form)
    assert is_safe(told)
    assert [] == [line for line in told.splitlines() if line.startswith(("✓", "after"))]
    assert "lib: server said before" in told, "what libraries log goes the same way"


def test_a_log_in_json_is_one_line_a_record_and_holds_the_very_text():
    first, second = map(json.loads, logged("json").split("\n")[:2])
    assert (EVIL, EVIL, "failed") == (first["event"], first["reason"], second["event"])
    assert EVIL in second["exception"]
