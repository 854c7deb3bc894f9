"""Maintainers: sign with a key or a bunker, publish, check; and the command line around it."""

import json
import socket
import subprocess
import sys
import zipfile

import orjson
import pytest
import trio

from bot.adapters.relay_events import RelayEvents
from bot.boot.identity import load_key
from bot.clock import SystemClock
from bot.tools.maintain import CannotRelease, Maintenance, read_measurements, sign_measurements
from bot.tools.signer import BunkerSigner, KeySigner, SignerProblem, client_key_beside
from handlers.domain.image import parse_image_ref
from nips import kinds, nip44
from nips.errors import BadInput
from nips.event import sign_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip46 import open_reply_untrusted, parse_bunker_uri
from nips.nip47 import format_uri
from nips.tee.image_release import verify_image_release, verify_image_signature
from nips.tee.nec05 import verify_release_signature
from tests.conftest import REPO as CHECKOUT
from tests.evidence import NOW, measured
from tests.fakes import IMAGE_ID, FakeEvents, FakeRegistry
from tests.relay.conftest import pool, relay

REPO, RELAY = "https://example.com/app", "wss://signers.example.com"
REF = parse_image_ref("example.com/app:1")


def desk(signers, **labels):
    named = ",".join(key.pubkey for key in signers)
    given = {"signers": named, "repo": REPO, "version": "1.0.0", "signer_relays": RELAY} | labels
    return Maintenance(FakeRegistry(labels=given), FakeEvents({RELAY: []}))


async def test_sign_then_publish_then_check():
    signers = [SecretKey.generate() for _ in range(2)]
    at = desk(signers)
    for key in signers:
        with pytest.raises(CannotRelease, match="not signed by"):
            await at.announce_image(REF, KeySigner(signers[0]), is_prod=True, now=NOW)
        event, relays = await at.sign_image(REF, KeySigner(key), is_prod=True, now=NOW)
        assert ((RELAY,), IMAGE_ID) == (relays, verify_image_signature(event).image.image_id)
        at.relays.relays[RELAY].append(event)
    announced, _ = await at.announce_image(REF, KeySigner(signers[0]), is_prod=True, now=NOW)
    assert {key.pubkey for key in signers} == {
        s.signer for s in verify_image_release(announced).signatures
    }
    assert (await at.check(REF)).verdict.is_signed_by_all
    with pytest.raises(CannotRelease, match="not signed by"):
        await at.announce_image(REF, KeySigner(signers[0]), is_prod=False, now=NOW)


async def test_what_cannot_be_signed():
    key = SecretKey.generate()
    cases = {
        "does not name you": desk([SecretKey.generate()]),
        "labels `repo` and `version`": desk([key], version=""),
    }
    for why, at in cases.items():
        with pytest.raises(CannotRelease, match=why):
            await at.sign_image(REF, KeySigner(key), is_prod=True, now=NOW)
    with pytest.raises(CannotRelease, match="names no signers"):
        await desk([]).announce_image(REF, KeySigner(key), is_prod=True, now=NOW)


async def test_measurements_are_signed_from_a_file(tmp_path):
    key = SecretKey.generate()
    measurements = {f"PCR{i}": measured(str(i)).hex() for i in range(3)}
    for value in (
        measurements,
        {"Measurements": {"HashAlgorithm": "Sha384 { ... }", **measurements}},
    ):
        (tmp_path / "pcrs.json").write_text(json.dumps(value))
        event = await sign_measurements(
            tmp_path / "pcrs.json",
            KeySigner(key),
            repo=REPO,
            version="1.0.0",
            is_prod=True,
            now=NOW,
        )
        release = verify_release_signature(event, read_measurements(tmp_path / "pcrs.json"))
        assert (key.pubkey, REPO) == (release.maintainer, release.repo)
    with pytest.raises(CannotRelease, match="--repo and --version"):
        await sign_measurements(
            tmp_path / "pcrs.json", KeySigner(key), repo="", version="", is_prod=True, now=NOW
        )


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"PCR0": "00"}', '{"PCR0": 1}', json.dumps({f"PCR{i}": "00" * 48 for i in range(3)}),
     json.dumps({f"PCR{i}": "zz" * 48 for i in range(3)})],
)  # fmt: skip
def test_measurements_that_are_none(tmp_path, text):
    (tmp_path / "pcrs.json").write_text(text)
    with pytest.raises(CannotRelease, match=r"pcrs\.json"):
        read_measurements(tmp_path / "pcrs.json")
    with pytest.raises(CannotRelease, match="No such file"):
        read_measurements(tmp_path / "none")


# -- a bunker on a real relay ------------------------------------------------------------------------------


class Bunker:
    """Holds a user's key, under a key of its own. ``tamper`` changes what it signs."""

    def __init__(self, url, secret="s3cret", tamper=None, auth_first=False, silent=False):
        self.key, self.user, self.url, self.secret = (
            SecretKey.generate(),
            SecretKey.generate(),
            url,
            secret,
        )
        self.tamper, self.auth_first, self.silent = tamper, auth_first, silent
        self.connected, self.seen = set(), set()

    @property
    def uri(self):
        return f"bunker://{self.key.pubkey}?relay={self.url}&secret={self.secret}"

    async def run(self):
        async with pool(self.url) as connection:
            connection.subscribe(
                "b", [Filter(kinds=frozenset({24133}), tags={"p": frozenset({self.key.pubkey})})]
            )
            while not self.silent:
                event = (await connection.receive()).event
                if event.id not in self.seen:
                    self.seen.add(event.id)
                    for reply in self.replies(event):
                        await connection.publish(reply)
            await trio.sleep_forever()

    def replies(self, event):
        body = orjson.loads(nip44.decrypt_untrusted(self.key, event.pubkey, event.content))
        if self.auth_first:
            self.auth_first = False
            yield self.sealed(
                event,
                {"id": body["id"], "result": "auth_url", "error": "https://agree.example.com"},
            )
        result, error = self.result(event.pubkey, body["method"], body["params"])
        yield self.sealed(event, {"id": body["id"], "result": result, "error": error})

    def sealed(self, event, body):
        content = nip44.encrypt(self.key, event.pubkey, orjson.dumps(body).decode())
        return sign_event(self.key, 24133, content, [("p", event.pubkey)], SystemClock().now())

    def result(self, client, method, params):
        if method == "connect":
            if params != [self.key.pubkey, "s3cret"]:
                return "", "wrong secret"
            self.connected.add(client)
            return "ack", ""
        if client not in self.connected:
            return "", "not connected"
        if method == "get_public_key":
            return self.user.pubkey, ""
        asked = orjson.loads(params[0])
        if self.tamper:
            asked = self.tamper(asked)
        event = sign_event(
            self.user, asked["kind"], asked["content"], asked["tags"], asked["created_at"]
        )
        return event.json.decode(), ""


async def signed_by(bunker, url, nursery, told=None, answer_s=5.0):
    nursery.start_soon(bunker.run)
    signer = BunkerSigner(
        parse_bunker_uri(bunker.uri), SecretKey.generate(), RelayEvents([url]), SystemClock(),
        (told if told is not None else []).append, answer_s,
    )  # fmt: skip
    return await signer.sign(1, "words", [("t", "x")], 1_700_000_000)


async def test_a_bunker_signs_what_was_asked_for(nursery):
    async with relay() as (_, url):
        bunker, told = Bunker(url, auth_first=True), []
        event = await signed_by(bunker, url, nursery, told)
        assert (bunker.user.pubkey, "words", (("t", "x"),)) == (
            event.pubkey,
            event.content,
            event.tags,
        )
        assert "https://agree.example.com" in told[0]


@pytest.mark.parametrize("field", ["content", "kind", "created_at", "tags"])
async def test_a_bunker_that_signs_something_else(nursery, field):
    other = {"content": "other", "kind": 2, "created_at": 1, "tags": []}[field]
    async with relay() as (_, url):
        bunker = Bunker(url, tamper=lambda asked: asked | {field: other})
        with pytest.raises(SignerProblem, match="something else"):
            await signed_by(bunker, url, nursery)


async def test_a_bunker_that_refuses_or_is_silent(nursery):
    async with relay() as (_, url):
        with pytest.raises(SignerProblem, match="refuses connect: wrong secret"):
            await signed_by(Bunker(url, secret="wrong"), url, nursery)
        with pytest.raises(SignerProblem, match="does not answer"):
            await signed_by(Bunker(url, silent=True), url, nursery, answer_s=0.5)


@pytest.mark.parametrize(
    "text", ["", "bunker://", "bunker://zz?relay=wss://a", "nostrconnect://x", f"bunker://{'a' * 64}", "x" * 3_000,
             f"bunker://{'f' * 64}?relay=wss://a", "bunker://[x?relay=wss://a"],
)  # fmt: skip
def test_bunker_uris_that_are_none(text):
    with pytest.raises(BadInput) as caught:
        parse_bunker_uri(text)
    assert len(text) < 10 or text not in str(caught.value)


def test_a_bunkers_secret_cannot_be_printed_and_our_key_there_is_kept(tmp_path):
    key = SecretKey.generate().pubkey
    uri = parse_bunker_uri(f"bunker://{key}?relay=wss://a&secret=topsecret")
    assert "topsecret" == uri.secret
    assert "topsecret" not in repr(uri)
    file = tmp_path / "bunker.uri"
    assert (
        client_key_beside(file)
        == client_key_beside(file)
        == load_key(tmp_path / "bunker.uri.client")
    )


def test_replies_that_are_none():
    us, bunker = SecretKey.generate(), SecretKey.generate()
    for body in (b"x", b"[]", b"{}", b'{"id":1,"result":"x"}', b'{"id":"1"}'):
        content = nip44.encrypt(bunker, us.pubkey, body.decode())
        with pytest.raises(BadInput):
            open_reply_untrusted(us, sign_event(bunker, kinds.NOSTR_CONNECT, content, [], NOW))


# -- the command line ----------------------------------------------------------------------------------------


def enclaved(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bot", *arguments], capture_output=True, text=True, cwd=CHECKOUT
    )


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


def one_line(done, code, why):
    """Every failure is one clear line."""
    assert code == done.returncode, done.stderr
    assert 1 == len(
        [line for line in done.stderr.splitlines() if line.startswith("enclaved: error: ")]
    ), done.stderr
    assert why in done.stderr
    assert "Traceback" not in done.stderr


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
    [([KEY], "no relay is known"), ([KEY, "--relay", "ws://127.0.0.1:1"], "no relay has")],
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


# -- what gets into an image ----------------------------------------------------------------------------------


def test_the_image_holds_nothing_for_development(tmp_path):
    """The wheel is what is put into an enclave. No signer of documents, no escrow, no toy is in it."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "image")
    assert {"bot/release.json", "keycrux_client/recovery.py", "bot/adapters/nsm.py"} <= set(names)
    assert [] == [n for n in names if "devstack" in n or n.startswith(("tests/", "bench/"))]
    for path in (tmp_path / "image").rglob("*.py"):
        text = path.read_text()
        assert "bot.devstack" not in text, path
        # A key that signs certificates or documents has no business here.
        for word in ("CertificateBuilder", "generate_private_key", "sign_document"):
            assert word not in text, path
    environment = {"PYTHONPATH": str(tmp_path / "image"), "PATH": "/usr/bin:/bin"}
    run = [sys.executable, "-c", "import bot, bot.tools.cli, bot.server.app; print(bot.__file__)"]
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert str(tmp_path / "image") in done.stdout, done.stderr
    run[-1] = "import bot.devstack"
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "ModuleNotFoundError: No module named 'bot.devstack'" in done.stderr
