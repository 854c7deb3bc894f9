"""The same requests through every door: encrypted RPC and public mention. And what only one may carry."""

import itertools

import orjson
import pytest

from bot.server.doors import mention, rpc
from handlers import ROUTES
from handlers.domain.lifecycle import State
from handlers.errors import Code, Refusal
from nips import kinds
from nips.event import sign_event
from nips.keys import SecretKey
from nips.nip19 import npub
from nips.rpc import RpcRequest, build_request, open_reply_untrusted

IMAGE = "example.com/app:1"
COUNT = itertools.count()
SLOW_DOWN = Refusal(Code.RATE_LIMITED, "slow down")


class RpcDoor:
    """Answers are JSON; an error is its ``error``."""

    public = False

    def __init__(self, world, key):
        self.world, self.key = world, key

    async def ask(self, method, **params):
        now = self.world.clock.now()
        event = build_request(
            self.key,
            kinds.RPC,
            self.world.ctx.key.pubkey,
            RpcRequest(str(next(COUNT)), method, params),
            now,
        )
        reply = await rpc.answer(self.world.ctx, event)
        opened = open_reply_untrusted(self.key, reply)
        return opened.error or opened.result

    async def text(self, method, **params):
        answer = await self.ask(method, **params)
        return answer if isinstance(answer, str) else orjson.dumps(answer).decode()


class MentionDoor:
    """Answers are text."""

    public = True

    def __init__(self, world, key):
        self.world, self.key = world, key

    def note(self, line, tags=()):
        us = npub(self.world.ctx.key.pubkey)
        content = f"hey nostr:{us} {line}\nthanks!"
        return sign_event(
            self.key,
            kinds.NOTE,
            content,
            [("p", self.world.ctx.key.pubkey), *tags],
            self.world.clock.now(),
        )

    async def text(self, method, **params):
        line = " ".join([method, *(f"{name}={value}" for name, value in params.items())])
        reply = await mention.answer(self.world.ctx, self.note(line))
        return reply.content


@pytest.fixture(params=[RpcDoor, MentionDoor], ids=["rpc", "mention"])
def door(request, world):
    key = SecretKey.generate()
    world.admin = key.pubkey
    return request.param(world, key)


async def test_ping(door):
    assert await door.text("ping") == "pong"


async def test_help_lists_every_command(door):
    text = await door.text("help")

    assert all(route.method in text for route in ROUTES)


async def test_quote_names_the_price_and_the_digest(door):
    text = await door.text("quote", docker=IMAGE, units=3)

    assert "15" in text
    assert "@sha256:" in text


@pytest.mark.parametrize("method", ["deploy", "launch"])
async def test_deploy_gives_an_invoice_and_payment_starts_it(door, method):
    text = await door.text(method, docker=IMAGE, units=2)
    payment_hash, invoice = next(iter(door.world.wallet.invoices.items()))
    assert invoice["bolt11"] in text

    door.world.wallet.settle(payment_hash)
    await door.world.turn()
    rows = await door.world.store.read(lambda tx: tx.containers.list_of(door.key.pubkey, 10))
    assert [row.state for row in rows] == [State.DEPLOYED]


async def test_topup_balance_and_stop(door):
    pubkey = await door.world.deployed()
    topup = await door.text("topup", pubkey=pubkey, amount_sat=7)
    assert any(
        i["bolt11"] in topup and i["amount"] == 7_000 for i in door.world.wallet.invoices.values()
    )
    assert "5" in await door.text("balance", pubkey=npub(pubkey))
    await door.text("stop", pubkey=pubkey)
    await door.text("stop", pubkey=pubkey)
    assert State.STOPPED is (await door.world.row(pubkey)).state


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("deploy", {"docker": "UPPER", "units": 1}, "invalid: docker must be"),
        ("deploy", {"docker": IMAGE, "units": 0}, "invalid: units must be an integer 1..50"),
        ("deploy", {"docker": IMAGE, "units": 51}, "invalid: units must be"),
        ("deploy", {"docker": IMAGE, "units": "1.5"}, "invalid: units must be"),
        ("deploy", {"docker": IMAGE, "units": "true"}, "invalid: units must be"),
        ("deploy", {"docker": IMAGE}, "invalid: units is missing"),
        ("deploy", {"docker": IMAGE, "units": 1, "name": "../x"}, "invalid: name must be"),
        ("deploy", {"docker": IMAGE, "units": 1, "colour": "red"}, "invalid: unknown parameter"),
        ("balance", {"pubkey": "nonsense"}, "invalid: pubkey must be"),
        ("balance", {"pubkey": "ab" * 32}, "not-found:"),
        ("stop", {"pubkey": "ab" * 32}, "not-found:"),
        ("topup", {"pubkey": "ab" * 32, "amount_sat": 1}, "not-found:"),
    ],
)
async def test_bad_input_gets_an_error_that_a_person_can_act_on(door, method, params, error):
    if params.get("pubkey") == "ab" * 32:
        params = params | {"pubkey": SecretKey.generate().pubkey}
    assert (await door.text(method, **params)).startswith(error)
    assert await door.world.store.read(lambda tx: tx.containers.list_in(tuple(State))) == []


async def test_only_the_admin_may_stop(door):
    door.world.admin = SecretKey.generate().pubkey
    pubkey = await door.world.deployed()

    assert (await door.text("stop", pubkey=pubkey)).startswith("restricted:")


async def test_a_surprise_is_an_internal_error_and_the_next_request_works(door):
    async def breaks(ref):
        raise RuntimeError("boom")

    resolve = door.world.registry.resolve
    door.world.registry.resolve = breaks
    text = await door.text("quote", docker=IMAGE)
    assert text.startswith("internal: request ")
    assert "boom" not in text
    door.world.registry.resolve = resolve
    assert "sat" in await door.text("quote", docker=IMAGE)


# -- RPC only ---------------------------------------------------------------------------------------


@pytest.fixture
def rpc_door(world):
    key = SecretKey.generate()
    world.admin = key.pubkey
    return RpcDoor(world, key)


@pytest.mark.parametrize("units", ["1", 1.5, True, None, [], {}, 2**62, -1])
async def test_units_is_an_integer_and_nothing_like_it(rpc_door, units):
    assert str(await rpc_door.ask("deploy", docker=IMAGE, units=units)).startswith(
        "invalid: units"
    )


@pytest.mark.parametrize(
    "env",
    [{"A B": "x"}, {"": "x"}, {"A": 1}, {"A": "\0"}, {"A": "x" * 5_000}, {"ENCLAVED_TOKEN": "x"}, {"enclaved": "x"},
     {f"K{i}": "" for i in range(65)}, {f"K{i}": "x" * 4_000 for i in range(6)}, [], "A=1"],
)  # fmt: skip
async def test_bad_environments_are_refused(rpc_door, env):
    assert str(await rpc_door.ask("deploy", docker=IMAGE, units=1, env=env)).startswith(
        "invalid: env"
    )


async def test_unknown_methods_get_an_error(rpc_door):
    assert (await rpc_door.ask("nonsense")).startswith("not-found:")


async def test_launch_answers_as_existing_clients_expect(rpc_door):
    result = await rpc_door.ask(
        "launch", docker=IMAGE, units=1, name="app", env={"A": "1"}, upgrade="auto"
    )

    assert {"pubkey", "invoice"} <= result.keys()
    assert {"invoice", "payment_hash", "amount", "created_at", "expires_at"} <= result[
        "invoice"
    ].keys()


async def test_a_quote_can_be_relied_on(rpc_door):
    quoted = await rpc_door.ask("quote", docker=IMAGE, units=2)
    wrong = await rpc_door.ask("deploy", docker=IMAGE, units=3, quote_id=quoted["quote_id"])
    assert wrong.startswith("invalid: that quote")
    good = await rpc_door.ask("deploy", docker=IMAGE, units=2, quote_id=quoted["quote_id"])
    assert good["invoice"]["amount"] == 10_000
    rpc_door.world.clock.advance(601)
    late = await rpc_door.ask("deploy", docker=IMAGE, units=2, quote_id=quoted["quote_id"])
    assert late.startswith("invalid: that quote")


@pytest.mark.parametrize("content", ["", "garbage", "A" * 200, "#" * 140])
async def test_what_cannot_be_decrypted_gets_an_error_with_an_empty_id(rpc_door, content):
    event = sign_event(rpc_door.key, kinds.RPC, content, [("p", rpc_door.world.ctx.key.pubkey)], 1)
    opened = open_reply_untrusted(rpc_door.key, await rpc.answer(rpc_door.world.ctx, event))

    assert opened.rpc_id == ""
    assert opened.error.startswith("invalid:")


@pytest.mark.parametrize("plain", ["no json", "[]", "{}", '{"id":1,"method":"ping","params":{}}', '{"id":"","method":"ping","params":{}}',
                                   '{"id":"1","method":"ping","params":[]}', '{"id":"1","method":"","params":{}}', "[" * 5000])  # fmt: skip
async def test_what_is_no_request_gets_an_error(rpc_door, plain):
    from nips import nip44

    us = rpc_door.world.ctx.key.pubkey
    event = sign_event(
        rpc_door.key, kinds.RPC, nip44.encrypt(rpc_door.key, us, plain), [("p", us)], 1
    )
    opened = open_reply_untrusted(rpc_door.key, await rpc.answer(rpc_door.world.ctx, event))

    assert opened.error.startswith("invalid:")


async def test_rate_limited_is_said(rpc_door):
    us = rpc_door.world.ctx.key.pubkey
    event = build_request(rpc_door.key, kinds.RPC, us, RpcRequest("7", "ping", {}), 1)
    opened = open_reply_untrusted(
        rpc_door.key, await rpc.answer(rpc_door.world.ctx, event, SLOW_DOWN)
    )

    assert (opened.rpc_id, opened.error) == ("7", "rate-limited: slow down")


async def test_logs_that_are_too_long_are_cut_at_the_front(rpc_door):
    pubkey = await rpc_door.world.deployed()

    async def long(pubkey, lines):
        return "old\n" + "x" * 100_000 + "newest"

    rpc_door.world.engine.logs = long
    result = await rpc_door.ask("logs", pubkey=pubkey)
    assert result["truncated"]
    assert result["logs"].endswith("newest")


async def test_a_callers_list_is_his_own(rpc_door):
    mine = await rpc_door.world.deployed()
    rpc_door.world.admin = SecretKey.generate().pubkey
    await rpc_door.world.deployed()

    assert [mine] == [c["pubkey"] for c in (await rpc_door.ask("list"))["containers"]]


async def test_unpaid_invoices_of_a_container_come_to_an_end(rpc_door):
    rpc_door.world.admin = SecretKey.generate().pubkey
    pubkey = await rpc_door.world.deployed()
    answers = [await rpc_door.ask("topup", pubkey=pubkey, amount_sat=1) for _ in range(21)]

    assert [dict] * 20 == [type(answer) for answer in answers[:20]]
    assert answers[-1].startswith("rate-limited:")
    assert isinstance(await rpc_door.world.call("topup", pubkey=pubkey, amount_sat=1), dict), (
        "but the admin's"
    )
    rpc_door.world.clock.advance(700)
    assert isinstance(await rpc_door.ask("topup", pubkey=pubkey, amount_sat=1), dict)


# -- mentions only ----------------------------------------------------------------------------------


@pytest.fixture
def mention_door(world):
    key = SecretKey.generate()
    world.admin = key.pubkey
    return MentionDoor(world, key)


async def test_the_reply_is_threaded_and_marked(mention_door):
    note = mention_door.note("ping")
    reply = await mention.answer(mention_door.world.ctx, note)

    assert ["e", note.id] == list(reply.tags[0][:2])
    assert reply.tags[0][3] == "root"
    assert note.pubkey in reply.tag_values("p")
    assert ("client", "enclaved") in reply.tags


async def test_a_reply_deep_in_a_thread_keeps_its_root(mention_door):
    note = mention_door.note("ping", [("e", "aa" * 32, "", "root"), ("e", "bb" * 32, "", "reply")])
    reply = await mention.answer(mention_door.world.ctx, note)
    marks = {t[3]: t[1] for t in reply.tags if t[0] == "e"}

    assert {"root": "aa" * 32, "reply": note.id} == marks


async def test_deploy_by_words_and_a_lightning_link(mention_door):
    note = mention_door.note(f"deploy {IMAGE} units=2")
    reply = await mention.answer(mention_door.world.ctx, note)

    assert "lightning:lnbcrt" in reply.content
    assert "Pay 10 sat" in reply.content


@pytest.mark.parametrize("line", ["you are cool", "", "nonsense x=1", "DEPLOYED?"])
async def test_people_may_talk_about_us_without_being_answered(mention_door, line):
    note = mention_door.note(line)

    assert not mention.is_command(mention_door.world.ctx, note)
    assert await mention.answer(mention_door.world.ctx, note) is None


@pytest.mark.parametrize("method", ["withdraw", "logs", "info", "list"])
async def test_private_commands_are_refused_in_public(mention_door, method):
    assert (await mention_door.text(method)).startswith("restricted:")


async def test_secrets_are_refused_in_public(mention_door):
    assert "encrypted RPC" in await mention_door.text("deploy", docker=IMAGE, units=1, env="A=1")
    assert (
        await mention_door.world.store.read(lambda tx: tx.containers.list_in(tuple(State))) == []
    )


async def test_a_flood_is_not_answered_in_public(mention_door):
    assert (
        await mention.answer(mention_door.world.ctx, mention_door.note("ping"), SLOW_DOWN) is None
    )
