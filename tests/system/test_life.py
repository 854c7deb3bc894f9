"""The life of an enclave whose root is the Dockerfile's image, in namespaces: power on, money, power cut, and back; and the
parent never learns anything."""

import json
import re
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
import trio

from bot.adapters.nwc_client import known
from bot.adapters.nwc_wallet import NwcWallet
from bot.adapters.relay_events import RelayEvents
from bot.boot.heads import heads_of, newest_head
from bot.clock import SystemClock
from bot.devstack.sample import build_image
from bot.devstack.wallet import PATIENCE
from bot.devstack.whole import whole_stack
from bot.tools.client import CallRefused, NoAnswer, open_client
from handlers.ports import PayStatus
from nips.keys import SecretKey
from nips.nip47 import parse_uri
from tests.conftest import REPO
from tests.system.test_whole_stack import POLICY, needs_root
from tests.system.twin import twin

pytestmark = [
    pytest.mark.dockerd,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
# Dear enough that a balance changes by the second and not by much more.
SLOW = POLICY | {"tariff": {"price_msat": 1_000, "interval_s": 10}}
SECRET = "a tenant's own secret, 0123456789abcdef"


# Goes on counting where it stopped, in its volume and in its writable layer, and says from where.
COUNTS = (
    "for f in /data/n /n; do [ -e $f ] || echo 0 >$f; done; echo begin volume $(cat /data/n) layer $(cat /n); "
    "while :; do for f in /data/n /n; do echo $(($(cat $f) + 1)) >$f; done; "
    "echo count volume $(cat /data/n) layer $(cat /n); sleep 0.5; done"
)


class Person:
    """A tenant with a wallet, who asks again when nobody answered."""

    def __init__(self, on, me, wallet):
        self.on, self.me, self.wallet = on, me, wallet

    async def call(self, method, **params):
        with trio.fail_after(60):
            while True:
                try:
                    with trio.move_on_after(15):
                        return await self.me.call(self.on.instance, method, **params)
                except NoAnswer:
                    pass
                except CallRefused as refused:
                    if not any(word in str(refused) for word in ("unavailable", "slow down")):
                        raise
                await trio.sleep(0.5)

    async def pay(self, invoice):
        paid = await self.wallet.pay(invoice["invoice"], invoice["amount"], None)
        assert paid.status is PayStatus.SETTLED

    async def until_state(self, pubkey, state):
        with trio.fail_after(60):
            while (found := await self.call("info", pubkey=pubkey))["state"] != state:
                await trio.sleep(0.2)
        return found


def asked_parent(on, *words):
    return json.loads(ordered(on, *words, "--json"))


def ordered(on, *words):
    config = str(on.enclave.parent_config)
    command = [sys.executable, "-m", "bot", "parent", *words, "--config", config]
    return subprocess.run(command, capture_output=True, check=True).stdout


def files_of_parent(on):
    folder = on.enclave.folder / "parent"
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@asynccontextmanager
async def living(kind="tun", **options):
    """An enclave that is up, and a tenant with money."""
    needs_root()
    async with whole_stack(lambda _: None, SLOW, kind=kind, **options) as on:
        wallet = NwcWallet(
            known(parse_uri(on.payer_uri())), SystemClock(), answer_s=5, relay_policy=PATIENCE
        )
        async with (
            open_client(SecretKey.generate(), [on.relay_url]) as me,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(wallet.run)
            await wallet.wait_ready()
            yield on, Person(on, me, wallet)
            nursery.cancel_scope.cancel()


async def test_power_cut_and_back_signed_upgrade_and_one_that_is_not(record_property):
    async with living() as (on, tenant):
        wallet = tenant.wallet
        image = await on.ground.push("sample/counts", "1", build_image(COUNTS))
        began = trio.current_time()
        deployed = await tenant.call(
            "deploy", docker=image, units=1, amount_sat=500, env={"TOKEN": SECRET}
        )
        waited_ms = (trio.current_time() - began) * 1_000
        pubkey = deployed["pubkey"]
        await tenant.pay(deployed["invoice"])
        await tenant.until_state(pubkey, "deployed")
        unpaid = await tenant.call("topup", pubkey=pubkey, amount_sat=300)
        counted = await _counted(tenant, pubkey, "volume", at_least=4)
        await _next_full_checkpoint(on)
        identity, before = on.instance, await tenant.call("balance", pubkey=pubkey)

        assert 1 == (await _told_head(on)).epoch, "relays know of the head as well"

        # Paid while nobody is there to hear it: the invoice was anchored before it left.
        await on.enclave.cut_power()
        began = trio.current_time()
        await on.enclave.start()
        assert identity == await on.enclave.ready()
        back_s = trio.current_time() - began
        await tenant.pay(unpaid["invoice"])
        await tenant.until_state(pubkey, "deployed")
        for where in ("volume", "layer"):
            begun = await _begun(tenant, pubkey, where)
            assert counted - 2 <= begun, f"{where} is as of the checkpoint"
        after = await _until_balance(tenant, pubkey, at_least=before["balance_sat"] + 290)
        # What ran between the last copy and the power cut is forgotten: to the tenant's good.
        assert before["balance_sat"] + 250 <= after["balance_sat"] <= before["balance_sat"] + 303

        await trio.to_thread.run_sync(ordered, on, "rotate")
        with trio.fail_after(60):
            while not on.enclave.said("the disk key was renewed"):
                await trio.sleep(0.2)

        # At the end of its life it saves itself: nothing at all is lost.
        shut = await tenant.call("balance", pubkey=pubkey)
        await on.enclave.stop()
        said = on.enclave.said("the last checkpoint")
        assert said[-1]["anchored"] is True
        await on.enclave.cut_power()
        on.enclave.image = await trio.to_thread.run_sync(on.enclave.changed_image)
        await on.enclave.start(signed=False)
        assert "hold none for this code" in await on.enclave.halted()
        await on.enclave.stop()
        assert any("hold none for this code" in line for line in asked_parent(on, "logs"))
        await on.enclave.start()
        assert identity == await on.enclave.ready(), "signed, the upgrade gets the key"
        await tenant.until_state(pubkey, "deployed")
        upgraded = await tenant.call("balance", pubkey=pubkey)
        assert shut["balance_sat"] - 30 <= upgraded["balance_sat"] <= shut["balance_sat"]
        stranger = await wallet.make_own_invoice(100_000, "back to me")
        paid = await tenant.call("withdraw", pubkey=pubkey, invoice=stranger.bolt11)
        assert "settled" == paid["state"]

        status = await _reported_ready(on)
        assert "up" == status["enclave"]
        assert 0 <= status["backups"]["newest_s_ago"] < 120
        _the_parent_knows_nothing(on, image, pubkey)
    record_property(
        "figure",
        f"power on to ready, restored: {back_s:.1f} s; deploy answered after {waited_ms:.0f} ms",
    )


async def _reported_ready(on):
    """The parent hears of it every few seconds."""
    with trio.fail_after(20):
        while True:
            status = await trio.to_thread.run_sync(asked_parent, on, "status")
            if status["report"]["step"] == "ready":
                return status
            await trio.sleep(0.5)


async def _words(tenant, pubkey):
    return [
        line.split() for line in (await tenant.call("logs", pubkey=pubkey))["logs"].splitlines()
    ]


async def _counted(tenant, pubkey, where, at_least):
    """How far it has come, once it has come that far."""
    with trio.fail_after(30):
        while True:
            found = [words for words in await _words(tenant, pubkey) if "count" in words]
            if found and (count := int(found[-1][found[-1].index(where) + 1])) >= at_least:
                return count
            await trio.sleep(0.3)


async def _begun(tenant, pubkey, where):
    """Where it began counting, the last time that it was started."""
    with trio.fail_after(30):
        while not (found := [w for w in await _words(tenant, pubkey) if "begin" in w]):
            await trio.sleep(0.3)
    return int(found[-1][found[-1].index(where) + 1])


async def _told_head(on):
    events = RelayEvents([on.relay_url])
    with trio.fail_after(30):
        while True:
            found = await events.find([heads_of(on.instance)], [on.relay_url])
            if (head := newest_head(found, on.instance)) is not None:
                return head
            await trio.sleep(0.5)


async def _next_full_checkpoint(on):
    """Everybody's disks go with the minute's checkpoint."""
    before = len(on.enclave.said("checkpoint"))
    with trio.fail_after(90):
        while not any(r["full"] and r["disks"] for r in on.enclave.said("checkpoint")[before:]):
            await trio.sleep(0.5)


async def _until_balance(tenant, pubkey, at_least):
    with trio.fail_after(30):
        while (found := await tenant.call("balance", pubkey=pubkey))[
            "balance_sat"
        ] < at_least - 40:
            await trio.sleep(0.3)
    return found


def _the_parent_knows_nothing(on, image, pubkey):
    """Everything that it has, searched for whatever it must not have."""
    kept = files_of_parent(on)
    assert len(kept) > 3
    everything = b"".join(kept.values()) + " ".join(str(path) for path in kept).encode()
    hidden = [
        SECRET,
        image,
        pubkey,
        on.instance,
        on.payer.reveal_secret().hex(),
        "SQLite format",
        "lnbc",
    ]
    for text in hidden:
        assert text.encode() not in everything
        if all(c in "0123456789abcdef" for c in text):
            assert bytes.fromhex(text) not in everything


def test_the_life_as_the_demo_shows_it():
    needs_root()
    done = subprocess.run(
        [sys.executable, "-m", "bot.devstack", "demo", "--life"],
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=240,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    assert [str(n) for n in range(1, 8)] == re.findall(r"\[(\d+)\]", done.stdout)
    assert "halted: the escrow services that answer hold none for this code" in done.stdout
    assert "cleaned up" in done.stdout


async def test_of_two_enclaves_from_one_backup_the_older_one_stops_and_nothing_is_lost():
    async with living() as (on, tenant), twin(on) as second:
        image = await on.ground.push("sample/counts", "1", build_image(COUNTS))
        deployed = await tenant.call("deploy", docker=image, units=1, amount_sat=500)
        pubkey = deployed["pubkey"]
        await tenant.pay(deployed["invoice"])
        await tenant.until_state(pubkey, "deployed")
        before = await tenant.call("balance", pubkey=pubkey)
        await second.start_parent()
        await second.start()
        assert on.instance == await second.ready()
        with trio.fail_after(40):
            await on.enclave.machine.ended()
        assert any("another enclave was started" in line for line in asked_parent(on, "logs"))
        await tenant.until_state(pubkey, "deployed")
        after = await tenant.call("balance", pubkey=pubkey)
        assert before["balance_sat"] - 30 <= after["balance_sat"] <= before["balance_sat"] + 5
        # Powered on again, it is a life of its own: the newer of the two now.
        await on.enclave.stop_module()
        await on.enclave.start()
        assert on.instance == await on.enclave.ready()
        with trio.fail_after(40):
            await second.machine.ended()
        status = await _reported_ready(on)
        assert "up" == status["enclave"]
