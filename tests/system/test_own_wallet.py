"""The wallet in a container of the enclave's own: found and believed by proof, and its money survives a power cut with the books."""

import pytest
import trio

from bot.adapters.relay_events import RelayEvents
from bot.devstack.sample import build_image
from nips import kinds
from nips.filters import Filter
from tests.system.test_life import living

pytestmark = [
    pytest.mark.dockerd,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def _told_wallet(on):
    wanted = Filter(authors=frozenset({on.instance}), kinds=frozenset({kinds.ANNOUNCEMENT}))
    (event, *_) = await RelayEvents([on.relay_url]).find([wanted], [on.relay_url])
    return next(tag for tag in event.tags if tag[0] == "wallet")


async def test_what_the_enclaves_own_wallet_holds_is_there_after_a_power_cut(record_property):
    async with living(own_wallet=True) as (on, tenant):
        assert ("wallet", on.wallet_pubkey, "enclave") == await _told_wallet(on)
        image = await on.ground.push("a/sleeps", "1", build_image("sleep 100000", ports=()))
        deployed = await tenant.call("deploy", docker=image, units=1, amount_sat=500)
        pubkey = deployed["pubkey"]
        await tenant.pay(deployed["invoice"])
        await tenant.until_state(pubkey, "deployed")
        more = await tenant.call("topup", pubkey=pubkey, amount_sat=700)
        await tenant.pay(more["invoice"])
        with trio.fail_after(30):
            while (before := await tenant.call("balance", pubkey=pubkey))["balance_sat"] < 1_100:
                await trio.sleep(0.1)
        mine = await tenant.wallet.make_own_invoice(300_000, "back to me")
        paid = await tenant.call("withdraw", pubkey=pubkey, invoice=mine.bolt11)
        assert "settled" == paid["state"]
        held = await tenant.wallet.balance(None)

        # At once, and not after the minute at which everybody's disks are copied.
        await on.enclave.cut_power()
        await on.enclave.start()
        await on.enclave.ready()
        await tenant.until_state(pubkey, "deployed")
        # It is found some seconds after everything else; until then `topup` is unavailable, and asked again.
        again = await tenant.call("topup", pubkey=pubkey, amount_sat=100)
        assert held == await tenant.wallet.balance(None), (
            "no payment was undone, none was done twice"
        )
        after = await tenant.call("balance", pubkey=pubkey)
        assert (
            before["balance_sat"] - 300 - 40 <= after["balance_sat"] <= before["balance_sat"] - 300
        )
        await tenant.wallet.pay(more["invoice"]["invoice"], 700_000, None)
        assert held == await tenant.wallet.balance(None), "it was paid in its former life"
        await tenant.pay(again["invoice"])
        assert held - 100_000 == await tenant.wallet.balance(None)
        assert ("wallet", on.wallet_pubkey, "enclave") == await _told_wallet(on)
