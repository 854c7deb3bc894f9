"""A relay may show what its author deleted long ago: `verify` looks for that, and asks the instance."""

from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from bot.tools.report import Answer
from handlers.transitions import save_changed
from nips import kinds
from nips.event import Event, sign_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip09 import build_deletion
from nips.rpc import RpcReply, build_reply, open_request_untrusted
from nips.tee.certificates import Role, build_certificate
from nips.tee.container import ContainerFacts, build_container
from tests.evidence import NOW
from tests.fakes import DIGEST
from tests.tools.instance import ask, proved, publish_containers, relay_holding, relay_of


def stored(server, kind, author):
    return server.query([Filter(kinds=frozenset({kind}), authors=frozenset({author}))])


@dataclass
class Stale:
    """The instance's relay, and one that still shows its announcement and the container's first one."""

    world: object
    server: object
    url: str
    old_url: str
    pubkey: str
    event: Event

    async def ask(self, *urls, **options):
        return await ask(self.world, *urls, own=[self.url], **options)

    async def announce_again(self, **changes):
        self.world.clock.advance(5)
        await self.world.store.write(
            lambda tx: save_changed(tx, replace(tx.containers.find(self.pubkey), **changes))
        )
        await publish_containers(self.world, self.server)

    async def stop(self, *, told=True):
        self.world.clock.advance(5)
        await self.world.call("stop", pubkey=self.pubkey, force=True)
        if told:
            await publish_containers(self.world, self.server)


@asynccontextmanager
async def stale(world, **options):
    proved(world)
    pubkey = await world.deployed()
    async with relay_of(world, **options) as (server, url):
        # What the instance announces names the relay on which it is at home.
        world.ctx = replace(world.ctx, presence=replace(world.ctx.presence, relay_urls=(url,)))
        async with relay_of(world, **options) as (second, _):
            (announced,) = stored(second, kinds.ANNOUNCEMENT, world.ctx.key.pubkey)
        (event,) = stored(server, kinds.CONTAINER, pubkey)
        server.publish(announced)
        async with relay_holding(world, announced, event) as old_url:
            yield Stale(world, server, url, old_url, pubkey, event)


async def test_a_container_that_was_deleted_is_not_valid_whoever_still_shows_it(world):
    async with stale(world) as at:
        for subject in ({"pubkey": at.pubkey}, {"event_id": at.event.id}):
            report = await at.ask(at.old_url, **subject)
            assert Answer.VALID is report.answer, report.lines()
        await at.stop()
        for urls in ((at.old_url, at.url), (at.url, at.old_url), (at.old_url,)):
            for subject in ({"pubkey": at.pubkey}, {"event_id": at.event.id}):
                for ask_instance in (True, False):
                    report = await at.ask(*urls, ask_instance=ask_instance, **subject)
                    assert (Answer.NOT_VALID, "NOT VALID: deletion: its own author deleted the announcement.") == (
                        report.answer, report.sentence,
                    )  # fmt: skip


async def test_without_the_deletion_the_instance_tells(world):
    async with stale(world) as at:
        await at.stop(told=False)
        report = await at.ask(at.old_url, pubkey=at.pubkey)
        assert (Answer.NOT_VALID, "NOT VALID: still there: the instance says that it is stopped.") == (
            report.answer, report.sentence,
        )  # fmt: skip
        offline = await at.ask(at.old_url, pubkey=at.pubkey, ask_instance=False)
        assert (Answer.VALID, True) == (offline.answer, "as announced" in offline.sentence)


async def test_a_container_that_the_instance_does_not_know(world):
    enclave = proved(world)
    key, image = SecretKey.generate(), f"example.com/app@{DIGEST}"
    root = await world.ctx.proof.current(NOW)
    certificate = build_certificate(
        enclave.key, key.pubkey, Role.CONTAINER, NOW, image=image, not_after=NOW + 9_000
    )
    facts = ContainerFacts(enclave.key.pubkey, world.admin, "deployed", 1, image, 1, (), None)
    async with relay_of(world) as (server, url):
        server.publish(build_container(key, facts, (root, certificate), NOW))
        report = await ask(world, url, pubkey=key.pubkey)
    assert (Answer.NOT_VALID, "NOT VALID: still there: the instance knows no such container.") == (
        report.answer, report.sentence,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "why"),
    [(RpcReply("", None, "rate-limited: slow down"), "refuses (rate-limited: slow down)"),
     (RpcReply("", "pong", None), "cannot be understood"), (RpcReply("", {"detail": "deployed"}, None), "cannot be understood"),
     (RpcReply("", {"pubkey": "0" * 64, "detail": "deployed"}, None), "cannot be understood"),
     (None, "does not answer")],
    ids=["refused", "a word", "of nothing", "of another", "silent"],
)  # fmt: skip
async def test_an_instance_that_says_nothing_of_the_container_leaves_it_open(
    world, monkeypatch, reply, why
):
    import bot.tools.challenge

    if reply is None:
        monkeypatch.setattr(bot.tools.challenge, "ANSWER_S", 3)

    def tamper(request_event, honest):
        request = open_request_untrusted(world.ctx.key, request_event)
        if request.method != "balance":
            return honest
        if reply is None:
            return sign_event(world.ctx.key, kinds.RPC, "", [], NOW)
        return build_reply(
            world.ctx.key, request_event, replace(reply, rpc_id=request.rpc_id), NOW
        )

    async with stale(world, tamper=tamper) as at:
        report = await at.ask(at.old_url, pubkey=at.pubkey)
    assert (Answer.COULD_NOT_CHECK, True) == (report.answer, why in report.sentence), (
        report.lines()
    )
    assert "asked about the container" in report.sentence


async def test_a_deletion_counts_even_when_the_instance_is_gone(world, monkeypatch):
    import bot.tools.challenge

    monkeypatch.setattr(bot.tools.challenge, "ANSWER_S", 0.5)
    async with stale(world, answers=False) as at:
        report = await at.ask(at.old_url, pubkey=at.pubkey)
        assert Answer.COULD_NOT_CHECK is report.answer
        await at.stop()
        report = await at.ask(at.old_url, pubkey=at.pubkey)
        assert Answer.NOT_VALID is report.answer


async def test_nobody_deletes_for_another(world):
    async with stale(world) as at:
        thief = SecretKey.generate()
        deletion = build_deletion(thief, [(at.event.id, kinds.CONTAINER)], NOW)
        named = sign_event(thief, kinds.DELETION, "", [("e", at.event.id), ("p", at.pubkey)], NOW)
        async with relay_holding(world, deletion, named) as url:
            report = await at.ask(url, at.old_url, pubkey=at.pubkey)
        assert Answer.VALID is report.answer, report.lines()


async def test_a_key_is_judged_by_its_newest_announcement_and_an_old_event_by_what_replaced_it(
    world,
):
    async with stale(world) as at:
        await at.announce_again(upgrade="auto")
        by_key = await at.ask(at.old_url, pubkey=at.pubkey)
        assert Answer.VALID is by_key.answer, by_key.lines()
        by_id = await at.ask(at.old_url, event_id=at.event.id)
        assert (Answer.NOT_VALID, True) == (
            by_id.answer,
            "deleted the announcement" in by_id.sentence,
        )
        # A relay that has the newer one, but not the deletion that came with it.
        (newer,) = stored(at.server, kinds.CONTAINER, at.pubkey)
        async with relay_holding(world, newer) as url:
            by_id = await ask(world, at.old_url, url, event_id=at.event.id, ask_instance=False)
        assert (Answer.NOT_VALID, True) == (by_id.answer, "newer announcement" in by_id.sentence)


async def test_the_state_is_what_the_instance_says_now(world):
    async with stale(world) as at:
        await world.run(2 * 3600, 60)
        report = await at.ask(at.old_url, pubkey=at.pubkey)
        assert "paused" == (await world.call("balance", pubkey=at.pubkey))["detail"]
        assert (Answer.VALID, "paused") == (report.answer, report.facts["state"]), report.lines()
        assert "is a container (paused) of" in report.sentence


async def test_an_announcement_of_a_clock_that_runs_ahead_of_ours_is_found(world):
    async with stale(world) as at:
        for early_s, answer in (
            (4, Answer.VALID),
            (300, Answer.VALID),
            (301, Answer.COULD_NOT_CHECK),
        ):
            world.clock.advance(-early_s)
            report = await at.ask(at.url, pubkey=at.pubkey)
            world.clock.advance(early_s)
            assert answer is report.answer, report.lines()
