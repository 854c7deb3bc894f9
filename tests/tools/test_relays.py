"""Relays that had nothing, relays that were not heard: a person must know which, and neither is a verdict."""

import trio

from bot.tools.report import Answer
from nips.keys import SecretKey
from tests.tools.instance import ask, proved, relay_holding, relay_of

NOBODY, NEITHER = "ws://127.0.0.1:1", "ws://127.0.0.1:2"
NOTHING, SILENT = (
    "nothing of it that could be verified",
    "could not be reached, or did not answer in time",
)


async def test_a_relay_that_cannot_be_reached_is_not_an_unknown_npub(world):
    unknown = SecretKey.generate().pubkey
    async with relay_holding(world) as url, relay_holding(world) as other:
        cases = {
            (NOBODY,): f"COULD NOT CHECK: {NOBODY} {SILENT}.",
            (NOBODY, f"{NEITHER}/"): f"COULD NOT CHECK: {NOBODY}, {NEITHER} {SILENT}.",
            (url,): f"COULD NOT CHECK: {url} has {NOTHING}.",
            (url, other): f"COULD NOT CHECK: {url}, {other} have {NOTHING}.",
            (url, NOBODY): f"COULD NOT CHECK: {url} has {NOTHING}; {NOBODY} {SILENT}.",
        }
        for urls, sentence in cases.items():
            report = await ask(world, *urls, pubkey=unknown)
            assert (Answer.COULD_NOT_CHECK, sentence) == (report.answer, report.sentence)
            silent = [u for u in ((NOBODY, NEITHER)) if any(u in asked for asked in urls)]
            assert silent == report.as_dict().get("silent_relays", [])


async def test_a_relay_that_takes_the_question_and_says_nothing(world, nursery):
    listeners = await nursery.start(trio.serve_tcp, lambda _: trio.sleep_forever(), 0)
    url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    report = await ask(world, url, pubkey=SecretKey.generate().pubkey)
    assert f"COULD NOT CHECK: {url} {SILENT}." == report.sentence


async def test_what_holds_by_one_relay_holds_and_the_silent_one_is_told(world):
    proved(world)
    async with relay_of(world) as (_, url):
        report = await ask(world, NOBODY, url, pubkey=world.ctx.key.pubkey)
    assert Answer.VALID is report.answer, report.lines()
    assert [NOBODY] == report.facts["silent_relays"]
    assert f"– relays: {NOBODY} {SILENT}" in report.lines()


async def test_no_relay_at_all(world):
    report = await ask(world, pubkey=SecretKey.generate().pubkey)
    assert (Answer.COULD_NOT_CHECK, True) == (
        report.answer,
        "no relay is known" in report.sentence,
    )
