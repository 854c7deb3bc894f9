"""The instance is asked to prove itself now: what it answers, and what no answer means."""

from bot.tools.report import Answer
from nips import kinds
from nips.filters import Filter
from nips.keys import SecretKey
from nips.rpc import RpcReply
from tests.evidence import HARDWARE, Enclave, measured
from tests.tools.instance import answering, ask, proved, relay_holding, relay_of


async def test_what_cannot_be_looked_at_is_never_good(world, monkeypatch):
    import bot.tools.challenge

    monkeypatch.setattr(bot.tools.challenge, "ANSWER_S", 0.5)
    proved(world)
    async with relay_of(world, answers=False) as (server, url):
        unknown = SecretKey.generate().pubkey
        reports = {
            "does not answer": await ask(world, url, pubkey=world.ctx.key.pubkey),
            "nothing of it that could be verified": await ask(world, url, pubkey=unknown),
            "no relay is known": await ask(world, pubkey=world.ctx.key.pubkey),
            "ws://127.0.0.1:1 could not be reached": await ask(
                world, "ws://127.0.0.1:1", pubkey=world.ctx.key.pubkey
            ),
        }
        for why, report in reports.items():
            assert Answer.COULD_NOT_CHECK is report.answer, report.lines()
            assert why in report.sentence
        offline = await ask(world, url, pubkey=world.ctx.key.pubkey, ask_instance=False)
        assert Answer.VALID is offline.answer
        assert "just now" not in offline.sentence
    pubkey = await world.deployed()
    async with relay_of(world) as (server, _):
        (event,) = server.query([Filter(kinds=frozenset({kinds.CONTAINER}))])
    async with relay_holding(world, event) as url:
        report = await ask(world, url, pubkey=pubkey)
    assert Answer.COULD_NOT_CHECK is report.answer
    assert f"no relay knows its instance: {url} has nothing of its instance" in report.sentence


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
            report = await ask(world, url, pubkey=world.ctx.key.pubkey)
        assert Answer.NOT_VALID is report.answer, why
        assert why in report.sentence


async def test_an_instance_that_is_busy_is_not_a_fraud(world):
    proved(world)
    busy = answering(world, lambda _: RpcReply("", None, "rate-limited: slow down"))
    async with relay_of(world, tamper=busy) as (_, url):
        report = await ask(world, url, pubkey=world.ctx.key.pubkey)
    assert Answer.COULD_NOT_CHECK is report.answer
    assert "rate-limited: slow down" in report.sentence


async def test_an_instance_that_runs_other_code_than_it_announced(world):
    enclave = proved(world)
    async with relay_of(world) as (_, url):
        enclave.pcrs[0] = measured("other code")
        report = await ask(world, url, pubkey=world.ctx.key.pubkey)
    assert Answer.NOT_VALID is report.answer
    assert "other code than announced" in report.sentence
