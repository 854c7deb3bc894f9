"""A tenant fills whatever there is to fill; only his own container notices. The real server on a real dockerd."""

import pytest
import trio

from bot.adapters.nwc_client import known
from bot.adapters.nwc_wallet import NwcWallet
from bot.clock import SystemClock
from bot.devstack.sample import build_image
from bot.devstack.stack import stack
from bot.devstack.wallet import PATIENCE
from bot.tools.client import open_client
from nips.keys import SecretKey
from nips.nip47 import parse_uri
from tests.system.test_life import COUNTS, SLOW, Person, _counted
from tests.system.test_whole_stack import needs_root

pytestmark = [
    pytest.mark.dockerd,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MB = 1_000_000
FILLS = (
    "for f in /full /data/full /tmp/full; do dd if=/dev/zero of=$f bs=64k 2>/dev/null; "
    "echo filled $f $(ls -l $f); done; "
    ": >/data/full; i=0; while touch /data/$i 2>/dev/null; do i=$((i+1)); done; echo files $i; sleep 8; "
    "dd if=/dev/zero of=/dev/shm/full bs=64k & ( while :; do echo noise noise noise noise noise; done ) & while :; do sleep 1; echo done; done"
)


async def test_whatever_a_tenant_fills_is_his_own(record_property):
    needs_root()
    async with stack(lambda _: None, SLOW, has_parent=True) as on:
        fills = await on.ground.push("sample/fills", "1", build_image(FILLS, ports=()))
        counts = await on.ground.push("sample/counts", "1", build_image(COUNTS, ports=()))
        wallet = NwcWallet(
            known(parse_uri(on.payer_uri())), SystemClock(), answer_s=5, relay_policy=PATIENCE
        )
        async with (
            open_client(SecretKey.generate(), [on.relay_url]) as me,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(wallet.run)
            await wallet.wait_ready()
            tenant = Person(on, me, wallet)
            attacker, neighbour = [await _deployed(tenant, image) for image in (fills, counts)]
            before = await _counted(tenant, neighbour, "volume", at_least=2)
            found = await _filled(tenant, attacker)
            assert 0.8 * 50 * MB < found["/full"] < 50.2 * MB
            assert 0.8 * 10 * MB < found["/data/full"] < 10.1 * MB
            assert found["/tmp/full"] < MB, "that is the layer, which is full"
            assert 100 < found["files"] < 10_000
            later = await _counted(tenant, neighbour, "volume", at_least=before + 4)
            assert later >= before + 4
            other = await _deployed(tenant, counts)
            assert await _counted(tenant, other, "layer", at_least=2), "there is room for others"
            assert "pong" == await me.call(on.instance, "ping")
            nursery.cancel_scope.cancel()
    record_property("figure", f"filled by one unit: {found}")


async def _deployed(tenant, image):
    deployed = await tenant.call("deploy", docker=image, units=1, amount_sat=500)
    await tenant.pay(deployed["invoice"])
    await tenant.until_state(deployed["pubkey"], "deployed")
    return deployed["pubkey"]


async def _filled(tenant, pubkey):
    """What it said before it drowned its own log."""
    with trio.fail_after(120):
        found = {}
        while "files" not in found:
            text = (await tenant.call("logs", pubkey=pubkey, lines=1_000))["logs"]
            for line in text.splitlines():
                words = line.split()
                if "filled" in words:
                    at = words.index("filled")
                    # As ls has it: mode, links, owner, group, size.
                    found[words[at + 1]] = int(words[at + 6]) if len(words) > at + 6 else 0
                if "files" in words:
                    found["files"] = int(words[-1])
            await trio.sleep(2)
        return found
