"""``enclaved`` as a process: every failure is one line and an exit code."""

import json
import socket
import subprocess
import sys

import pytest

from nips.keys import SecretKey
from nips.nip47 import format_uri
from tests.conftest import REPO as CHECKOUT
from tests.evidence import measured

REPO = "https://example.com/app"


def enclaved(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bot", *arguments], capture_output=True, text=True, cwd=CHECKOUT
    )


def one_line(done, code, why):
    """Every failure is one clear line."""
    assert code == done.returncode, done.stderr
    assert 1 == len(
        [line for line in done.stderr.splitlines() if line.startswith("enclaved: error: ")]
    ), done.stderr
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_signing_measurements_on_the_command_line(tmp_path):
    (tmp_path / "pcrs.json").write_text(
        json.dumps({f"PCR{i}": measured(str(i)).hex() for i in range(3)})
    )
    me, binary = tmp_path / "me.key", tmp_path / "binary.key"
    binary.write_bytes(bytes(range(128, 256)))
    who = enclaved("key", str(me))
    assert who.stdout.startswith("npub1")
    sign = ["release", "sign", str(tmp_path / "pcrs.json"), "--key", str(me), "--no-publish"]
    done = enclaved(*sign, "--repo", REPO, "--version", "1.0.0", "--prod")
    assert (0, "") == (done.returncode, done.stderr)
    assert 63794 == json.loads(done.stdout)["kind"]
    for arguments, code, why in (
        (sign, 1, "--repo and --version"),
        ([*sign, "--bunker", "x"], 1, "--key or --bunker"),
        ([*sign[:3], "--key", str(me), "--repo", REPO, "--version", "1"], 1, "no relay took it"),
        (["release", "sign", "mistyped.json", "--key", str(me), "--repo", "x", "--version", "x"], 1, "No such file"),
        (["release", "sign", "NOT AN IMAGE", "--key", str(me)], 1, "repository name"),
        (["release", "sign", "x", "--repo", "x", "--key", str(me)], 1, "are for measurements"),
        ([*sign[:3], "--key", str(tmp_path / "none"), "--repo", "x", "--version", "x"], 1, "No such file"),
        ([*sign[:3], "--key", str(binary), "--repo", "x", "--version", "x"], 1, "not a text file"),
        ([*sign[:3], "--bunker", str(binary), "--repo", "x", "--version", "x"], 1, "not a text file"),
        (["call", "--relay", "ws://127.0.0.1:1", "--to", SecretKey.generate().pubkey, "--key", str(binary), "ping"], 1, "not a text file"),
        (["release", "check", "BAD IMAGE"], 2, "repository name"),
        (["release", "check", "127.0.0.1:1/x:1"], 2, "cannot be reached"),
    ):  # fmt: skip
        one_line(enclaved(*arguments), code, why)


KEY = SecretKey.generate().pubkey


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["nonsense"], "not a public key"), (["npub1x", "--relay", "ws://127.0.0.1:1"], "not a public key"),
     ([KEY, "--dev-root", "/none"], "No such file"), ([KEY, "--crl", "/none"], "No such file"),
     *(([KEY, "--at", at], "--at is a time") for at in ("yesterday", "9" * 30, "-1", "")),
     *(([KEY, "--expect-pcr0", pcr], "96 hex digits") for pcr in ("", "00", "zz" * 48)),
     ([KEY, "--maintainer", "x"], "not a public key"), ([KEY, "--repo", "x"], "--repo needs --maintainer")],
)  # fmt: skip
def test_mistakes_in_a_question_are_one_line_and_exit_2(arguments, why):
    one_line(enclaved("verify", *arguments), 2, why)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([KEY], "no relay is known"),
        ([KEY, "--relay", "ws://127.0.0.1:1"], "127.0.0.1:1 could not be reached"),
    ],
)
def test_what_cannot_be_looked_at_exits_with_2(arguments, why):
    done = enclaved("verify", *arguments)
    assert (2, "", True) == (done.returncode, done.stderr, why in done.stdout)
    as_json = json.loads(enclaved("verify", "--json", *arguments).stdout)
    assert "could not check" == as_json["answer"]


@pytest.mark.parametrize(
    "how",
    ["state is a file", "broken key", "port in use", "no module", "open module", "not a root"],
)
def test_a_server_that_cannot_start_says_so_in_one_line(tmp_path, how):
    state, module = tmp_path / "state", tmp_path / "nsm"
    config = {
        "server": {"state_dir": str(state)},
        "relays": {"embedded_port": 0},
        "attestation": {},
    }
    blocker = socket.socket()
    blocker.bind(("127.0.0.1", 0))
    blocker.listen()
    match how:
        case "state is a file":
            state.touch()
        case "broken key":
            state.mkdir()
            (state / "instance.key").write_bytes(b"\xff\xfe")
        case "port in use":
            config["relays"]["embedded_port"] = blocker.getsockname()[1]
        case "open module":
            module.touch(mode=0o666)
            module.chmod(0o666)
            config["attestation"]["nsm"] = str(module)
        case "no module":
            config["attestation"]["nsm"] = str(module)
        case _:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(module))
            module.chmod(0o600)
            config["attestation"] |= {
                "nsm": str(module),
                "development_root": str(tmp_path / "none"),
            }
    lines = [
        f"[{name}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in table.items())
        for name, table in config.items()
    ]
    (tmp_path / "enclaved.toml").write_text("\n".join(lines))
    uri = format_uri(KEY, "ws://127.0.0.1:1", SecretKey.generate())
    done = subprocess.run(
        [sys.executable, "-m", "bot", "run", "--config", str(tmp_path / "enclaved.toml")],
        capture_output=True, text=True, cwd=CHECKOUT, timeout=60, env={"ENCLAVED_WALLET_URI": uri, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    blocker.close()
    why = {"state is a file": "File exists", "broken key": "not a text file", "port in use": "in use",
           "no module": "no Nitro Security Module", "open module": "other users", "not a root": "development_root"}  # fmt: skip
    one_line(done, 1, why[how])
