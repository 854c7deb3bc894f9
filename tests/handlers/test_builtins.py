"""Containers of the instance's own: there before any tenant, free, not for sale, started again for ever, nobody's to touch."""

import json
from dataclasses import replace

import pytest

from bot.builtins import load_builtins
from bot.config import ConfigError
from handlers.alarms import Alarm
from handlers.context import Builtin
from handlers.domain.image import parse_image_ref
from handlers.domain.lifecycle import State
from handlers.duties.announce import instance_events
from handlers.duties.builtins import keep_builtins
from handlers.errors import Refusal
from handlers.ports import CannotStart, ImageProblem

WALLET = Builtin(
    "wallet", parse_image_ref(f"example.com/wallet@sha256:{'ab' * 32}"), 4, {"NETWORK": "regtest"}
)


@pytest.fixture
def home(world):
    """A world whose instance has a container of its own."""
    capacity = replace(world.ctx.policy.capacity, total_units=10 + WALLET.units)
    policy = replace(world.ctx.policy, capacity=capacity)
    world.ctx = replace(world.ctx, builtins=(WALLET,), policy=policy)
    return world


async def own(world):
    """Its row; there is one at most."""
    rows = await world.store.read(lambda tx: tx.containers.list_of(world.ctx.key.pubkey, 9))
    assert len(rows) <= 1
    return rows[0] if rows else None


async def test_it_is_there_without_anybodys_order_and_costs_nothing(home):
    await home.turn()
    row = await own(home)
    assert (State.DEPLOYED, "wallet", 4, ()) == (row.state, row.name, row.units, row.ports)
    assert dict(WALLET.env) == row.env
    await home.turn()
    assert row.pubkey in home.engine.runs()
    await home.run(7_200, step_s=60)
    assert (row.pubkey, State.DEPLOYED) == ((await own(home)).pubkey, (await own(home)).state)
    assert 0 == await home.balance(f"container:{row.pubkey}")
    await home.audit()


async def test_its_units_are_not_for_sale_and_no_other_loses_his(home):
    await home.turn()
    quoted = await home.call("quote", docker="example.com/app:1", units=10)
    assert 10 == quoted["units_free"]
    events, _ = await instance_events(home.ctx)
    told = {tag[0]: tag[1] for tag in events[0].tags if tag[0].startswith("units")}
    assert {"units_total": "10", "units_free": "10"} == told
    await home.deployed(units=5)
    refused = await home.call("deploy", docker="example.com/app:1", units=6)
    assert "not enough free units" in refused.text


@pytest.mark.parametrize("method", ["info", "logs", "restart", "stop"])
async def test_strangers_do_nothing_to_it(home, method):
    await home.turn()
    refused = await home.call(method, pubkey=(await own(home)).pubkey)
    assert isinstance(refused, Refusal)
    assert "only the container's admin" in refused.text


async def test_nobody_pays_for_it(home):
    await home.turn()
    refused = await home.call("topup", pubkey=(await own(home)).pubkey, amount_sat=100)
    assert "needs no money" in refused.text


async def test_whatever_gives_it_up_it_is_tried_again(home):
    home.engine.problem = CannotStart("no such program", permanent=True)
    await home.run(10)
    assert State.FAILED is (await own(home)).state
    home.engine.problem = None
    await home.run(home.ctx.policy.restart_every_s + 10)
    row = await own(home)
    assert State.DEPLOYED is row.state
    assert row.pubkey in home.engine.runs()


async def test_another_image_in_the_next_release_keeps_its_key_and_its_volumes(home):
    await home.turn()
    before = await own(home)
    newer = replace(WALLET, image=parse_image_ref(f"example.com/wallet@sha256:{'cd' * 32}"))
    home.ctx = replace(home.ctx, builtins=(newer,))
    await home.turn()
    after = await own(home)
    assert (before.pubkey, before.generation + 1) == (after.pubkey, after.generation)
    assert str(newer.image) == after.asked_for
    await home.turn()
    assert after.generation == (await own(home)).generation, "once"


async def test_one_that_cannot_be_had_is_an_alarm_that_ends_with_it(home):
    home.registry.problem = ImageProblem("there is no such image", permanent=True)
    await keep_builtins(home.ctx)
    assert Alarm.BUILTIN in home.ctx.alarms.raised
    refused = await home.call("deploy", docker="example.com/app:1", units=1)
    assert "cannot be had" in refused.text
    home.registry.problem = None
    await keep_builtins(home.ctx)
    assert Alarm.BUILTIN not in home.ctx.alarms.raised


async def test_a_crash_between_any_two_turns_makes_no_second_one(home):
    for _ in range(3):
        await keep_builtins(home.ctx)
        await keep_builtins(replace(home.ctx))
    assert await own(home) is not None


GOOD = {"image": f"example.com/w@sha256:{'ab' * 32}", "units": 2, "env": {"A": "b"}}


def load(tmp_path, value):
    path = tmp_path / "enclaved.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return load_builtins(path)


def test_the_file(tmp_path):
    assert () == load_builtins(None)
    (wallet,) = load(tmp_path, {"containers": {"wallet": GOOD}})
    assert ("wallet", 2, {"A": "b"}) == (wallet.name, wallet.units, wallet.env)
    assert str(wallet.image) == GOOD["image"]
    assert "env" not in repr(wallet), "it may hold secrets"


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("no json", "enclaved.json"),
        ([], "containers"),
        ({"containers": {}, "more": 1}, "containers"),
        ({"containers": {f"c{n}-x": GOOD for n in range(17)}}, "at most 16"),
        ({"containers": {"wallet": []}}, "no object"),
        ({"containers": {"wallet": {"units": 1}}}, "image"),
        ({"containers": {"wallet": GOOD | {"units": 0}}}, "units"),
        ({"containers": {"wallet": GOOD | {"units": True}}}, "units"),
        ({"containers": {"wallet": GOOD | {"image": "example.com/w:1"}}}, "digest"),
        ({"containers": {"wallet": GOOD | {"price": 1}}}, "price"),
        ({"containers": {"Wallet!": GOOD}}, "name"),
        ({"containers": {"wallet": GOOD | {"env": {"A": 1}}}}, "env"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path, value, word):
    with pytest.raises(ConfigError, match=word):
        load(tmp_path, value)


def test_no_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_builtins(tmp_path / "none.json")
