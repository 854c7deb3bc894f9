"""The whole server, its relay flooded past all bounds, then kill -9: it must come back by itself."""

import os
import signal
import subprocess

import pytest
import trio

from bot.clock import SystemClock
from bot.devstack.enclave import ESCROW_SOURCE
from bot.devstack.stack import stack
from nips import kinds
from nips.event import sign_event
from nips.keys import SecretKey
from tests.relay.test_server import talk

pytestmark = [
    pytest.mark.dockerd,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FLOOD, LOOKALIKES, STORED = 1_500, 600, 500


def said(folder, event):
    return (folder / "enclaved.log").read_text().count(f'"event": "{event}"')


async def flood(url):
    """Notes from new keys, and more look-alikes of escrow's announcement than one answer holds."""
    async with talk(url) as raw:
        for number in range(FLOOD):
            kind = kinds.ANNOUNCEMENT if number >= FLOOD - LOOKALIKES else kinds.NOTE
            now = SystemClock().now()
            event = sign_event(SecretKey.generate(), kind, "", [("r", ESCROW_SOURCE)], now)
            assert (await raw.say("EVENT", event.as_dict()))[2]


async def test_a_flooded_server_comes_back_after_kill_9():
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces and a private dockerd")
    limits = {"max_stored_events": STORED}
    async with stack(lambda _: None, {}, relay_limits=limits) as on:
        folder = on.ground.place.folder
        await flood(on.relay_url)
        before = said(folder, "ready")
        assert before == 1
        pattern = f"bot run --config {folder}/enclaved.toml"
        found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True)
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        with trio.move_on_after(120):
            while said(folder, "ready") == before:
                await trio.sleep(0.2)
        assert said(folder, "ready") == 2, (folder / "enclaved.log").read_text()[-3_000:]
