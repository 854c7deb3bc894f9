"""The instance's announcement is brought until every relay has it."""

from itertools import pairwise

import structlog
import trio

import bot.server.announcement
from bot.server.announcement import Announcement
from bot.server.outlet import Outlet
from nips import nip01
from nips.filters import Filter
from tests.relay.conftest import hostile, note, pool, relay


async def test_a_refusal_is_told_once_and_tried_again_until_it_is_taken(monkeypatch):
    asked = 0

    async def refuses_twice(relay, ws, message):
        nonlocal asked
        if message[0] == "EVENT":
            asked += 1
            ws.send(nip01.encode("OK", message[1]["id"], asked > 2, "blocked: pay first"))

    monkeypatch.setattr(bot.server.announcement, "FIRST_WAIT_S", 0.01)
    async with relay() as (server, good), hostile(refuses_twice) as (_, url), pool(url) as client:
        announcement = Announcement(Outlet(client, server, [good]))
        event = note(content="announcement")
        with structlog.testing.capture_logs() as lines, trio.fail_after(5):
            announcement.renew([event], [good, url])
            while asked < 3:
                await announcement.bring()
                await trio.sleep(0.01)
            await trio.sleep(0.2)
            await announcement.bring()
        assert [event.id] == [e.id for e in await server.query([Filter()])]

    assert asked == 3, "and not again once it was taken"
    assert [
        ("relay does not take our announcement", "rejected blocked: pay first"),
        ("relay has our announcement now", None),
    ] == [(line["event"], line.get("reason")) for line in lines if "announcement" in line["event"]]


class Refusing:
    """An outlet that takes nothing."""

    def __init__(self):
        self.tried = []

    async def deliver(self, event, urls):
        self.tried.append((trio.current_time(), event.content))
        return dict.fromkeys(urls, "no")


async def test_it_waits_longer_each_time_and_begins_anew_with_new_events(autojump_clock):
    outlet = Refusing()
    announcement = Announcement(outlet)
    announcement.renew([note(content="old")], ["ws://a"])
    started = trio.current_time()
    while trio.current_time() < started + 3_600:
        await announcement.bring()
        await trio.sleep(5)
    times = [at - started for at, _ in outlet.tried]
    waits = [b - a for a, b in pairwise(times)]

    assert waits[:4] == [5, 10, 20, 40]
    assert max(waits) == 600
    announcement.renew([note(content="new")], ["ws://a"])
    await announcement.bring()
    assert outlet.tried[-1] == (trio.current_time(), "new")
