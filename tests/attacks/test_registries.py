"""Registries that drip and strangers who flood: nobody else's quote, and nobody's paid start, waits for them."""

import pytest
import trio

from bot.adapters.oci_registry import QUESTIONS, OciRegistry
from bot.adapters.registry_client import RegistryConfig
from handlers.domain.image import parse_image_ref
from handlers.domain.ledger import container_account
from handlers.domain.lifecycle import State
from handlers.ports import CannotStart, ImageProblem
from tests.registry_site import RegistrySite, Sent

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
DRIP = Sent(body=b"{}" * 5_000, drip_s=0.1)


async def a_site(nursery, page=None):
    site = RegistrySite()
    await nursery.start(site.serve)
    site.image()
    if page is not None:
        site.pages["/v2/a/manifests/1"] = page
    return site


class Asked:
    """Quotes that are under way, and what became of them."""

    def __init__(self, registry, nursery):
        self.registry, self.nursery, self.answers = registry, nursery, []

    async def _one(self, site, caller):
        ref = parse_image_ref(f"{site.host}/a:1")
        self.answers.append(await self.registry.resolve(ref, caller))

    def start(self, site, caller):
        self.nursery.start_soon(self._one, site, caller)

    async def answered(self, site, caller):
        """Seconds until this one is answered well."""
        began = trio.current_time()
        found = await self.registry.resolve(parse_image_ref(f"{site.host}/a:1"), caller)
        assert not isinstance(found, ImageProblem), found
        return trio.current_time() - began


async def test_330_quotes_at_a_dripping_registry_delay_no_other(nursery):
    drip, good = await a_site(nursery, DRIP), await a_site(nursery)
    registry = OciRegistry(RegistryConfig((drip.host, good.host)))
    async with trio.open_nursery() as flood:
        asked = Asked(registry, flood)
        for number in range(330):
            asked.start(drip, f"stranger {number}")
        await trio.sleep(0.5)
        # Never seen before, and there are hundreds before us.
        assert await asked.answered(good, "somebody") < 5
        assert QUESTIONS.by_host >= drip.most_at_once > 0
        # Those that found neither a place nor room in the line were told so at once.
        assert 330 - QUESTIONS.by_host - QUESTIONS.waiting == len(asked.answers)
        assert all("too many images" in told.text for told in asked.answers)
        assert not any(told.permanent for told in asked.answers)
        flood.cancel_scope.cancel()
    await registry.aclose()


async def test_forty_dripping_registries_leave_room_for_the_one_that_works(nursery):
    drips = [await a_site(nursery, DRIP) for _ in range(40)]
    good = await a_site(nursery)
    registry = OciRegistry(RegistryConfig((good.host, *(site.host for site in drips))))
    async with trio.open_nursery() as flood:
        asked = Asked(registry, flood)
        await asked.answered(good, "somebody")
        for number, site in enumerate(drips):
            asked.start(site, f"stranger {number}")
        await trio.sleep(0.5)
        assert await asked.answered(good, "somebody else") < 5
        assert sum(site.at_once for site in drips) <= QUESTIONS.in_all // 2
        flood.cancel_scope.cancel()
    await registry.aclose()


async def test_one_stranger_at_a_popular_registry_has_his_places_only(nursery):
    """The same host that everybody uses: some of its images are asked for by one caller without end."""
    site = await a_site(nursery)
    site.pages["/v2/slow/manifests/1"] = DRIP
    registry = OciRegistry(RegistryConfig((site.host,)))
    refusals = []

    async def slow():
        ref = parse_image_ref(f"{site.host}/slow:1")
        refusals.append((await registry.resolve(ref, "stranger")).text)

    async with trio.open_nursery() as flood:
        for _ in range(100):
            flood.start_soon(slow)
        await trio.sleep(0.5)
        assert QUESTIONS.by_caller == site.at_once
        assert await Asked(registry, flood).answered(site, "somebody") < 5
        assert 100 - QUESTIONS.by_caller - QUESTIONS.waiting_by_caller == len(refusals)
        assert all("by you" in told for told in refusals)
        flood.cancel_scope.cancel()
    await registry.aclose()


async def test_a_paid_start_that_stood_in_line_is_not_late(world):
    """Twenty minutes behind others and then a hiccup of its own registry: it is tried again, not failed."""
    pubkey = await paid(world)
    world.engine.problem = CannotStart("the registry answers 503", permanent=False, waited_s=1_200)
    world.clock.advance(1_200)
    await world.turn()
    assert State.DEPLOYED is (await world.row(pubkey)).state
    world.engine.problem = CannotStart("the registry answers 503", permanent=False)
    world.clock.advance(world.ctx.policy.start_deadline_s - 100)
    await world.turn()
    assert State.DEPLOYED is (await world.row(pubkey)).state, (
        "the line is still taken into account"
    )
    world.clock.advance(200)
    await world.turn()
    row = await world.row(pubkey)
    assert (State.FAILED, "the registry answers 503") == (row.state, row.reason)


async def test_an_image_that_grows_beyond_its_disk_costs_nothing(world):
    """It fitted when it was quoted, packed; what it unpacks to showed while it came."""
    pubkey = await paid(world)
    account = container_account(pubkey)
    before = await world.balance(account)
    words = "the image is too large for its disk: its 3.1 MB unpack to more than 40 MB; take more units"
    world.engine.problem = CannotStart(words, permanent=True)
    await world.run(120)

    told = await world.call("info", pubkey=pubkey)
    assert (State.FAILED.value, words) == (told["detail"], told["reason"])
    assert before == await world.balance(account) > 0


async def test_info_tells_how_far_an_image_has_come(world):
    pubkey = await paid(world)
    world.engine.fetching[pubkey] = "fetching 12 of 60 MB"
    assert "fetching 12 of 60 MB" == (await world.call("info", pubkey=pubkey))["progress"]
    del world.engine.fetching[pubkey]
    assert (await world.call("info", pubkey=pubkey))["progress"] is None


async def paid(world):
    """A container that is paid, whose image does not come."""
    world.engine.problem = CannotStart("not yet", permanent=False)
    result = await world.call("deploy", docker="example.com/app:1", units=1)
    world.wallet.settle(result["invoice"]["payment_hash"])
    await world.turn()
    return result["pubkey"]
