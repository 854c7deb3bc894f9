"""The command line as an operator meets it."""

import subprocess
import sys

import pytest

from tests.conftest import REPO


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_the_command_line_helps(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "bot", *arguments], capture_output=True, text=True, cwd=REPO
    )

    assert (0, "usage: enclaved") == (done.returncode, done.stdout[:15])


def test_expected_failures_are_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "bot", "run", "--config", "/none"],
        capture_output=True,
        text=True,
        cwd=REPO,
    )

    assert (1, "enclaved: error: cannot read /none: No such file or directory\n") == (
        done.returncode,
        done.stderr,
    )


def test_python_without_asserts_is_refused():
    done = subprocess.run(
        [sys.executable, "-O", "-m", "bot", "--help"], capture_output=True, text=True, cwd=REPO
    )

    assert (1, "enclaved: error: never run this under python -O\n") == (
        done.returncode,
        done.stderr,
    )
