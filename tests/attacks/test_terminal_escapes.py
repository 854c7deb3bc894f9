"""A hostile instance and a hostile announcement write to the terminal of whoever asks: the real program, over a relay."""

import json
import sys
from contextlib import asynccontextmanager

import pytest
import trio

from bot.clock import SystemClock
from nips import kinds
from nips.event import sign_event
from nips.keys import SecretKey
from nips.nip19 import npub
from nips.rpc import RpcReply, build_reply, open_request_untrusted
from tests.conftest import REPO
from tests.relay.conftest import relay
from tests.test_terminal import SHAPELESS, is_safe

# What can travel as JSON: lone surrogates cannot.
EVIL = f"before{SHAPELESS}\n✓ forged: VALID (prod)\nafter".encode("utf-8", "ignore").decode()


@asynccontextmanager
async def hostile_instance(key, reply):
    """Answers every call with what ``reply`` says."""
    async with relay() as (server, url), trio.open_nursery() as nursery:

        async def answer(event):
            rpc_id = open_request_untrusted(key, event).rpc_id
            told = RpcReply(rpc_id, reply.result, reply.error)
            server.publish(build_reply(key, event, told, SystemClock().now()))

        def listener(event):
            if event.kind == kinds.RPC and key.pubkey in event.tag_values("p"):
                nursery.start_soon(answer, event)

        server.listen(listener)
        yield server, url
        nursery.cancel_scope.cancel()


async def enclaved(*arguments):
    done = await trio.run_process(
        [sys.executable, "-m", "bot", *arguments],
        capture_stdout=True, capture_stderr=True, check=False, cwd=REPO,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("door", ["result", "error"])
async def test_an_instance_answers_a_call_with_escapes(tmp_path, door):
    key, me = SecretKey.generate(), tmp_path / "me.key"
    me.write_text(SecretKey.generate().reveal_secret().hex())
    told = (
        RpcReply("", {"logs": EVIL, EVIL: 1}, None)
        if door == "result"
        else RpcReply("", None, EVIL)
    )
    async with hostile_instance(key, told) as (_, url):
        code, out, err = await enclaved(
            "call", "--relay", url, "--to", npub(key.pubkey), "--key", str(me), "logs"
        )
    if door == "result":
        assert (0, "", True) == (code, err, is_safe(out))
        assert told.result == json.loads(out)
    else:
        assert (1, "", True) == (code, out, is_safe(err))
        assert 1 == err.count("\n")


@pytest.mark.parametrize("form", ["lines", "json"])
async def test_an_announcement_writes_into_a_report(form):
    key, now = SecretKey.generate(), SystemClock().now()
    root = sign_event(SecretKey.generate(), kinds.ATTESTATION, EVIL, [("t", EVIL)], now)
    tags = [
        ("tee_root", root.json.decode()),
        ("r", EVIL),
        ("v", EVIL),
        ("relay", EVIL),
        ("t", EVIL),
    ]
    async with hostile_instance(key, RpcReply("", EVIL, None)) as (server, url):
        server.publish(sign_event(key, kinds.ANNOUNCEMENT, EVIL, tags, now))
        options = ["--json"] if form == "json" else []
        code, out, err = await enclaved("verify", npub(key.pubkey), "--relay", url, *options)
    assert (1, "") == (code, err)
    assert [] == [c for c in out if not c.isprintable() and c != "\n"]
    if form == "json":
        assert "not valid" == json.loads(out)["answer"]
    else:
        assert [] == [line for line in out.splitlines() if line.startswith("✓ forged")]
