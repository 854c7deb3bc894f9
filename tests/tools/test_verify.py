"""``verify`` over a real relay, against an instance of ours and against everything that may be wrong with one."""

import json
from dataclasses import replace

from bot.adapters.relay_events import Searched
from bot.tools.report import Answer
from bot.tools.verify import Question, verify
from nips import kinds
from nips.event import sign_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip19 import Pointer, npub
from nips.tee.anchor import AWS_NITRO_ROOT_G1
from nips.tee.attestation import Verifier
from nips.tee.certificates import Role, build_certificate
from nips.tee.policies import DebugPolicy, ExpectedMaintainers, ExpectedPcrs, MaxAge
from tests.evidence import HARDWARE, NOW, Enclave, measured, real_event
from tests.fakes import DIGEST
from tests.tools.instance import ask, proved, relay_of


async def test_an_instance_is_valid_and_the_report_says_all(world):
    enclave = proved(world)
    async with relay_of(world) as (_, url):
        expected = ExpectedMaintainers(frozenset(key.pubkey for key in enclave.maintainers))
        report = await ask(
            world, url, pubkey=world.ctx.key.pubkey, policies=[DebugPolicy(), expected]
        )

    assert Answer.VALID is report.answer, report.lines()
    assert report.sentence.startswith("VALID (prod)")
    facts = json.loads(json.dumps(report.as_dict()))
    assert (True, "aws", "valid", enclave.builder.pubkey) == (
        facts["answered"], facts["trust"], facts["answer"], facts["builder"],
    )  # fmt: skip
    assert measured("image 0").hex() == facts["pcrs"]["PCR0"]
    assert len(report.checks) + 1 == len(report.lines())


async def test_a_container_is_valid_with_its_image_and_its_instance(world):
    proved(world)
    pubkey = await world.deployed()
    async with relay_of(world) as (server, url):
        report = await ask(world, url, pubkey=pubkey)
        assert Answer.VALID is report.answer, report.lines()
        image = f"docker://example.com/app@{DIGEST}"
        assert (image, pubkey, world.ctx.key.pubkey) == (
            report.facts["image"], report.facts["author"], report.facts["instance"],
        )  # fmt: skip
        assert image in report.sentence
        (event,) = server.query([Filter(kinds=frozenset({kinds.CONTAINER}))])
        by_event = await ask(world, url, event_id=event.id)
        assert report.sentence == by_event.sentence


async def test_an_app_is_valid_through_its_container(world):
    enclave = proved(world)
    pubkey = await world.deployed()
    row, app = await world.row(pubkey), SecretKey.generate()
    root = await world.ctx.proof.current(NOW)
    certificates = [
        build_certificate(
            enclave.key,
            pubkey,
            Role.CONTAINER,
            NOW,
            image=row.image,
            not_after=root.attested.not_after,
        ),
        build_certificate(row.key, app.pubkey, Role.APP, NOW, not_after=root.attested.not_after),
    ]
    tags = [
        ("tee_root", root.event.json.decode()),
        *(("tee_cert", c.json.decode()) for c in certificates),
    ]
    note = sign_event(app, kinds.NOTE, "hello", tags, NOW)
    async with relay_of(world) as (server, url):
        server.publish(note)
        report = await ask(world, url, event_id=note.id)
        assert Answer.VALID is report.answer, report.lines()
        assert "an app in a container" in report.sentence
        gap = sign_event(app, kinds.NOTE, "hello", [tags[0], tags[2]], NOW)
        server.publish(gap)
        report = await ask(world, url, event_id=gap.id)
        assert (Answer.NOT_VALID, True) == (report.answer, "gap" in report.sentence)


async def test_expectations_that_are_not_met(world):
    proved(world)
    async with relay_of(world) as (_, url):
        for policy, why in (
            (ExpectedPcrs({0: "00" * 48}), "PCR0 differ"),
            (ExpectedMaintainers(frozenset({SecretKey.generate().pubkey})), "not signed by"),
            (ExpectedMaintainers(frozenset()), "nobody can vouch"),
        ):
            report = await ask(world, url, pubkey=world.ctx.key.pubkey, policies=[policy])
            assert Answer.NOT_VALID is report.answer
            assert why in report.sentence
        by_aws = await ask(
            world, url, pubkey=world.ctx.key.pubkey, verifier=Verifier(AWS_NITRO_ROOT_G1)
        )
        assert Answer.NOT_VALID is by_aws.answer
        assert "trusted root" in by_aws.sentence


async def test_an_instance_outside_of_an_enclave_proves_nothing(world):
    async with relay_of(world) as (_, url):
        report = await ask(world, url, pubkey=world.ctx.key.pubkey)
    assert (Answer.NOT_VALID, True) == (report.answer, "exactly one tee_root" in report.sentence)


async def test_an_app_is_found_by_what_it_signed_itself_and_by_nobody_elses_word(world):
    enclave = proved(world)
    pubkey, app = await world.deployed(), SecretKey.generate()
    row, root = await world.row(pubkey), await world.ctx.proof.current(NOW)
    claims = [("p", app.pubkey, "app"), ("expiration", str(NOW + 60))]
    certificates = [
        build_certificate(
            enclave.key, pubkey, Role.CONTAINER, NOW, image=row.image, not_after=NOW + 60
        ),
        build_certificate(row.key, app.pubkey, Role.APP, NOW, not_after=NOW + 60),
    ]
    tags = [
        ("tee_root", root.event.json.decode()),
        *(("tee_cert", c.json.decode()) for c in certificates),
    ]
    await world.store.write(
        lambda tx: tx.containers.save(replace(tx.containers.find(pubkey), app=app.pubkey))
    )
    async with relay_of(world) as (server, url):
        server.publish(sign_event(SecretKey.generate(), kinds.CONTAINER, "", claims, NOW))
        report = await ask(world, url, pubkey=app.pubkey)
        assert Answer.COULD_NOT_CHECK is report.answer, (
            "containers name it, but it said nothing itself"
        )
        server.publish(sign_event(app, kinds.NOTE, "hello", [], NOW))
        server.publish(sign_event(app, kinds.NOTE, "certified", tags, NOW - 1))
        report = await ask(world, url, pubkey=app.pubkey)
        assert Answer.VALID is report.answer, report.lines()
        assert f"{npub(app.pubkey)} is an app in a container of docker://" in report.sentence


async def test_events_of_another_author_expired_ones_and_future_ones(world):
    enclave = proved(world)
    root = await world.ctx.proof.current(NOW)
    proof = ("tee_root", root.event.json.decode())
    expired = sign_event(enclave.key, kinds.NOTE, "", [proof, ("expiration", "5")], NOW)
    future = sign_event(enclave.key, kinds.NOTE, "", [proof], NOW + 1_000)
    good = sign_event(enclave.key, kinds.NOTE, "", [proof], NOW)
    async with relay_of(world) as (server, url):
        for event in (future, good):
            server.publish(event)
        assert Answer.VALID is (await ask(world, url, event_id=good.id)).answer
        report = await ask(world, url, pubkey=SecretKey.generate().pubkey, event_id=good.id)
        assert (Answer.NOT_VALID, True) == (
            report.answer,
            "another key's than asked" in report.sentence,
        )
        report = await ask(world, url, event_id=future.id)
        assert (Answer.NOT_VALID, True) == (report.answer, "future" in report.sentence)

    class Archive:
        async def search(self, filters, relay_urls):
            return Searched((expired,) if any(f.matches(expired) for f in filters) else (), ())

    question = Question(
        Pointer(None, expired.id, ()), ("wss://x",), HARDWARE.verifier, NOW, (DebugPolicy(),)
    )
    report = await verify(question, Archive())
    assert (Answer.NOT_VALID, True) == (report.answer, "has expired" in report.sentence)


async def test_a_container_certified_by_other_code_or_long_ago(world):
    enclave = proved(world)
    pubkey = await world.deployed()
    row = await world.row(pubkey)
    other = Enclave(image="other", key=world.ctx.key)
    certificate = build_certificate(
        enclave.key, pubkey, Role.CONTAINER, NOW, image=row.image, not_after=NOW + 9_000
    )

    def note(home):
        tags = [
            ("tee_root", home.root_event().json.decode()),
            ("tee_cert", certificate.json.decode()),
        ]
        return sign_event(row.key, kinds.NOTE, "", tags, NOW)

    async with relay_of(world) as (server, url):
        theirs = note(other)
        server.publish(theirs)
        report = await ask(world, url, event_id=theirs.id)
        assert (Answer.NOT_VALID, True) == (
            report.answer,
            "other code than the instance" in report.sentence,
        )
        mine = note(enclave)
        server.publish(mine)
        world.clock.advance(100)
        report = await ask(
            world, url, event_id=mine.id, policies=[DebugPolicy(), MaxAge(60, NOW + 100)]
        )
        assert (Answer.NOT_VALID, True) == (report.answer, "100 s old" in report.sentence)


async def test_signatures_of_keys_that_nobody_named_are_told_as_such(world):
    enclave = proved(world)
    async with relay_of(world) as (_, url):
        report = await ask(world, url, pubkey=world.ctx.key.pubkey)
        assert "signed by 2 keys that you did not name" in report.sentence
        named = ExpectedMaintainers(frozenset(key.pubkey for key in enclave.maintainers))
        report = await ask(world, url, pubkey=world.ctx.key.pubkey, policies=[named])
        assert "signed by the maintainers that you named" in report.sentence


async def test_what_is_wrong_stays_wrong_when_the_rest_cannot_be_seen(world):
    proved(world)
    pubkey = await world.deployed()
    async with relay_of(world) as (server, url):
        (event,) = server.query([Filter(kinds=frozenset({kinds.CONTAINER}))])
        row = await world.row(pubkey)
        tags = [t if t[0] != "state" else ("state", "x") for t in event.tags if t[0] != "tee_cert"]
        wrong = sign_event(row.key, kinds.CONTAINER, "", tags, NOW)
        server.publish(wrong)
        report = await ask(world, url, event_id=wrong.id)
        assert Answer.NOT_VALID is report.answer


async def test_a_container_ends_before_its_instance_when_its_certificate_does(world):
    enclave = proved(world)
    pubkey = await world.deployed()
    row, root = await world.row(pubkey), await world.ctx.proof.current(NOW)
    short = build_certificate(
        enclave.key, pubkey, Role.CONTAINER, NOW, image=row.image, not_after=NOW + 60
    )
    tags = [("tee_root", root.event.json.decode()), ("tee_cert", short.json.decode())]
    note = sign_event(row.key, kinds.NOTE, "x", tags, NOW)
    async with relay_of(world) as (server, url):
        server.publish(note)
        report = await ask(world, url, event_id=note.id)
    assert (Answer.VALID, NOW + 60) == (report.answer, report.facts["not_after"])


async def test_old_evidence_at_its_own_time():
    event = real_event("nostr_announcement_63793.json")
    verifier = Verifier(AWS_NITRO_ROOT_G1)

    class Archive:
        async def search(self, filters, relay_urls):
            return Searched((event,) if any(f.matches(event) for f in filters) else (), ())

    async def at(now):
        pointer = Pointer(event.pubkey, None, ())
        question = Question(
            pointer, ("wss://x",), verifier, now, (DebugPolicy(),), ask_instance=False
        )
        return await verify(question, Archive())

    report = await at(event.created_at)
    assert report.sentence.startswith("VALID (dev)"), report.lines()
    assert Answer.NOT_VALID is (await at(event.created_at + 86_400)).answer
    assert Answer.COULD_NOT_CHECK is (await at(event.created_at - 86_400)).answer
