"""Who signs for a maintainer: a bunker on a real relay, honest and not."""

import orjson
import pytest
import trio

from bot.adapters.relay_events import RelayEvents
from bot.boot.identity import load_key
from bot.clock import SystemClock
from bot.tools.signer import BunkerSigner, SignerProblem, client_key_beside
from nips import kinds, nip44
from nips.errors import BadInput
from nips.event import sign_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip46 import open_reply_untrusted, parse_bunker_uri
from tests.evidence import NOW
from tests.relay.conftest import pool, relay


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
