"""``verify`` over a real relay, against an instance of ours and against everything that may be wrong with one."""

import json
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from bot.adapters.relay_events import RelayEvents
from bot.relay.server import RelayServer
from bot.server.doors import rpc
from bot.tools.report import Answer, Report
from bot.tools.verify import Question, verify
from handlers.duties.announce import instance_events, queue_container_events
from handlers.proof import Proof
from nips import kinds
from nips.event import parse_event_json_untrusted, sign_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip19 import Pointer, npub
from nips.rpc import RpcReply, build_reply, open_request_untrusted
from nips.tee.anchor import AWS_NITRO_ROOT_G1
from nips.tee.attestation import Verifier
from nips.tee.certificates import Role, build_certificate
from nips.tee.env import Env
from nips.tee.policies import DebugPolicy, ExpectedMaintainers, ExpectedPcrs, MaxAge
from nips.tee.verdict import Check, Outcome
from tests.evidence import HARDWARE, NOW, Enclave, measured, real_event
from tests.fakes import DIGEST


class HomeAttester:
    """Attests under the tests' hardware, as AWS would."""

    def __init__(self, enclave):
        self.enclave = enclave

    async def document(self, *, public_key, nonce=None, user_data=None):
        return HARDWARE.document(public_key, self.enclave.pcrs, nonce=nonce)


def proved(world, env=Env.PROD):
    """The world's server, living in an enclave."""
    enclave = Enclave(env=env, key=world.ctx.key)
    proof = Proof(
        world.ctx.key, HomeAttester(enclave), enclave.verifier, enclave.signatures(), env
    )
    places = replace(world.ctx.places, repo=enclave.repo)
    world.ctx = replace(world.ctx, proof=proof, places=places)
    return enclave


@asynccontextmanager
async def relay_of(world, *, answers=True, tamper=None, announced=True):
    """A relay on a real port, with the instance behind it."""
    server = RelayServer(world.clock, name="t", pubkey=None, is_open=True)
    async with trio.open_nursery() as nursery:

        async def answer(event):
            reply = await rpc.answer(world.ctx, event, rate_limited=False)
            await server.publish(tamper(event, reply) if tamper else reply)

        def listener(event):
            if (
                answers
                and event.kind == kinds.RPC
                and world.ctx.key.pubkey in event.tag_values("p")
            ):
                nursery.start_soon(answer, event)

        server.listen(listener)
        port = await nursery.start(server.serve, "127.0.0.1", 0)
        for event in (await instance_events(world.ctx))[0] if announced else ():
            await server.publish(event)
        await publish_containers(world, server)
        yield server, f"ws://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


async def publish_containers(world, server):
    await queue_container_events(world.ctx)
    for item in await world.store.read(lambda tx: tx.outbox(world.clock.now(), 100)):
        await server.publish(parse_event_json_untrusted(item.event_json))


async def ask(world, url, pubkey=None, *, event_id=None, policies=None, verifier=None, **options):
    pointer = Pointer(pubkey, event_id, ())
    question = Question(
        pointer, (url,) if url else (), verifier or HARDWARE.verifier, world.clock.now(),
        tuple(policies or [DebugPolicy()]), **options,
    )  # fmt: skip
    return await verify(question, RelayEvents([url] if url else []))


async def test_an_instance_is_valid_and_the_report_says_all(world):
    enclave = proved(world)
    async with relay_of(world) as (_, url):
        expected = ExpectedMaintainers(frozenset(key.pubkey for key in enclave.maintainers))
        report = await ask(world, url, world.ctx.key.pubkey, policies=[DebugPolicy(), expected])

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
        report = await ask(world, url, pubkey)
        assert Answer.VALID is report.answer, report.lines()
        image = f"docker://example.com/app@{DIGEST}"
        assert (image, pubkey, world.ctx.key.pubkey) == (
            report.facts["image"], report.facts["author"], report.facts["instance"],
        )  # fmt: skip
        assert image in report.sentence
        (event,) = await server.query([Filter(kinds=frozenset({kinds.CONTAINER}))])
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
        await server.publish(note)
        report = await ask(world, url, event_id=note.id)
        assert Answer.VALID is report.answer, report.lines()
        assert "an app in a container" in report.sentence
        gap = sign_event(app, kinds.NOTE, "hello", [tags[0], tags[2]], NOW)
        await server.publish(gap)
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
            report = await ask(world, url, world.ctx.key.pubkey, policies=[policy])
            assert Answer.NOT_VALID is report.answer
            assert why in report.sentence
        by_aws = await ask(world, url, world.ctx.key.pubkey, verifier=Verifier(AWS_NITRO_ROOT_G1))
        assert Answer.NOT_VALID is by_aws.answer
        assert "trusted root" in by_aws.sentence


async def test_an_instance_outside_of_an_enclave_proves_nothing(world):
    async with relay_of(world) as (_, url):
        report = await ask(world, url, world.ctx.key.pubkey)
    assert (Answer.NOT_VALID, True) == (report.answer, "exactly one tee_root" in report.sentence)


async def test_what_cannot_be_looked_at_is_never_good(world, monkeypatch):
    import bot.tools.challenge

    monkeypatch.setattr(bot.tools.challenge, "ANSWER_S", 0.5)
    proved(world)
    async with relay_of(world, answers=False) as (server, url):
        unknown = SecretKey.generate().pubkey
        reports = {
            "does not answer": await ask(world, url, world.ctx.key.pubkey),
            "no relay has": await ask(world, url, unknown),
            "no relay is known": await ask(world, "", world.ctx.key.pubkey),
            "no relay": await ask(world, "ws://127.0.0.1:1", world.ctx.key.pubkey),
        }
        for why, report in reports.items():
            assert Answer.COULD_NOT_CHECK is report.answer, report.lines()
            assert why in report.sentence
        offline = await ask(world, url, world.ctx.key.pubkey, ask_instance=False)
        assert Answer.VALID is offline.answer
        assert "just now" not in offline.sentence
    pubkey = await world.deployed()
    async with relay_of(world, announced=False) as (server, url):
        await world.store.write(
            lambda tx: tx.save_container(replace(tx.container(pubkey), dirty=True))
        )
        await publish_containers(world, server)
        report = await ask(world, url, pubkey)
        assert "no relay knows its instance" in report.sentence


def answering(world, change):
    """Every challenge is answered with what ``change`` makes of its nonce."""

    def tamper(request_event, reply):
        request = open_request_untrusted(world.ctx.key, request_event)
        told = change(bytes.fromhex(request.params["nonce"]))
        return build_reply(world.ctx.key, request_event, replace(told, rpc_id=request.rpc_id), NOW)

    return tamper


async def test_an_instance_that_answers_the_challenge_wrongly(world):
    enclave = proved(world)
    other = Enclave(image="other", key=world.ctx.key)
    thief = Enclave()

    def over(nonce, home):
        document = HARDWARE.document(bytes.fromhex(home.key.pubkey), home.pcrs, nonce=nonce)
        return RpcReply("", {"tee_root": home.root_event(document=document).as_dict()}, None)

    lies = {
        "does not answer our nonce": lambda _: over(b"n" * 32, enclave),
        "other code than announced": lambda nonce: over(nonce, other),
        "another key's": lambda nonce: over(nonce, thief),
        "holds no document": lambda _: RpcReply("", {"nothing": 1}, None),
        "no document": lambda _: RpcReply("", "pong", None),
        "an event is a JSON object": lambda _: RpcReply("", {"tee_root": "x"}, None),
    }
    for why, lie in lies.items():
        async with relay_of(world, tamper=answering(world, lie)) as (_, url):
            report = await ask(world, url, world.ctx.key.pubkey)
        assert Answer.NOT_VALID is report.answer, why
        assert why in report.sentence


async def test_an_instance_that_is_busy_is_not_a_fraud(world):
    proved(world)
    busy = answering(world, lambda _: RpcReply("", None, "rate-limited: slow down"))
    async with relay_of(world, tamper=busy) as (_, url):
        report = await ask(world, url, world.ctx.key.pubkey)
    assert Answer.COULD_NOT_CHECK is report.answer
    assert "rate-limited: slow down" in report.sentence


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
        lambda tx: tx.save_container(replace(tx.container(pubkey), app=app.pubkey))
    )
    async with relay_of(world) as (server, url):
        await server.publish(sign_event(SecretKey.generate(), kinds.CONTAINER, "", claims, NOW))
        report = await ask(world, url, app.pubkey)
        assert Answer.COULD_NOT_CHECK is report.answer, (
            "containers name it, but it said nothing itself"
        )
        await server.publish(sign_event(app, kinds.NOTE, "hello", [], NOW))
        await server.publish(sign_event(app, kinds.NOTE, "certified", tags, NOW - 1))
        report = await ask(world, url, app.pubkey)
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
            await server.publish(event)
        assert Answer.VALID is (await ask(world, url, event_id=good.id)).answer
        report = await ask(world, url, SecretKey.generate().pubkey, event_id=good.id)
        assert (Answer.NOT_VALID, True) == (
            report.answer,
            "another key's than asked" in report.sentence,
        )
        report = await ask(world, url, event_id=future.id)
        assert (Answer.NOT_VALID, True) == (report.answer, "future" in report.sentence)

    class Archive:
        async def find(self, filters, relay_urls):
            return [expired] if any(f.matches(expired) for f in filters) else []

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
        await server.publish(theirs)
        report = await ask(world, url, event_id=theirs.id)
        assert (Answer.NOT_VALID, True) == (
            report.answer,
            "other code than the instance" in report.sentence,
        )
        mine = note(enclave)
        await server.publish(mine)
        world.clock.advance(100)
        report = await ask(
            world, url, event_id=mine.id, policies=[DebugPolicy(), MaxAge(60, NOW + 100)]
        )
        assert (Answer.NOT_VALID, True) == (report.answer, "100 s old" in report.sentence)


async def test_signatures_of_keys_that_nobody_named_are_told_as_such(world):
    enclave = proved(world)
    async with relay_of(world) as (_, url):
        report = await ask(world, url, world.ctx.key.pubkey)
        assert "signed by 2 keys that you did not name" in report.sentence
        named = ExpectedMaintainers(frozenset(key.pubkey for key in enclave.maintainers))
        report = await ask(world, url, world.ctx.key.pubkey, policies=[named])
        assert "signed by the maintainers that you named" in report.sentence


async def test_what_is_wrong_stays_wrong_when_the_rest_cannot_be_seen(world):
    proved(world)
    pubkey = await world.deployed()
    async with relay_of(world) as (server, url):
        (event,) = await server.query([Filter(kinds=frozenset({kinds.CONTAINER}))])
        row = await world.row(pubkey)
        tags = [t if t[0] != "state" else ("state", "x") for t in event.tags if t[0] != "tee_cert"]
        wrong = sign_event(row.key, kinds.CONTAINER, "", tags, NOW)
        await server.publish(wrong)
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
        await server.publish(note)
        report = await ask(world, url, event_id=note.id)
    assert (Answer.VALID, NOW + 60) == (report.answer, report.facts["not_after"])


def test_hostile_text_is_shown_and_never_obeyed():
    evil = "x\n✓ forged\nVALID (prod): all is well\x1b[8m\r\u202e"
    lines = Report(
        Answer.NOT_VALID, f"NOT VALID: {evil}", (Check("repo", Outcome.FAILS, evil),)
    ).lines()
    assert 2 == len(lines)
    assert not any(c in "".join(lines) for c in "\n\r\x1b\u202e")


async def test_an_instance_that_runs_other_code_than_it_announced(world):
    enclave = proved(world)
    async with relay_of(world) as (_, url):
        enclave.pcrs[0] = measured("other code")
        report = await ask(world, url, world.ctx.key.pubkey)
    assert Answer.NOT_VALID is report.answer
    assert "other code than announced" in report.sentence


async def test_old_evidence_at_its_own_time():
    event = real_event("nostr_announcement_63793.json")
    verifier = Verifier(AWS_NITRO_ROOT_G1)

    class Archive:
        async def find(self, filters, relay_urls):
            return [event] if any(f.matches(event) for f in filters) else []

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
