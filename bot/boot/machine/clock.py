"""Reads the three clocks of `clock_guard`, and looks at them again while we run."""

import time

import structlog
import trio

from bot.adapters.nsm import NsmAttester
from bot.boot.anchors import load_anchor, open_module
from bot.boot.machine.clock_guard import Reading, why_wrong
from bot.clock import SystemClock
from bot.config import AttestationConfig
from nips.tee.attestation import Verifier, decode_document_untrusted

log = structlog.get_logger()
EVERY_S = 60.0
_TRIES = 3


class ClockWrong(Exception):
    """Nothing may be judged by this clock; the message says how far it is off."""


class ClockGuard:
    """Raises `BadInput` and what `open_module` and the module raise."""

    def __init__(self, config: AttestationConfig, most_apart_s: float) -> None:
        self._attester = NsmAttester(open_module(config))
        self._verifier = Verifier(load_anchor(config.development_root))
        self._most_apart_s = most_apart_s
        self._first: Reading | None = None

    async def look(self) -> None:
        """Raises `ClockWrong`. A module that is slow to answer is asked again: its time is that of its answer."""
        reason: str | None = None
        for _ in range(_TRIES):
            reading = await self._read()
            self._first = self._first or reading
            if (reason := why_wrong(self._first, reading, self._most_apart_s)) is None:
                return
        raise ClockWrong(reason)

    async def run(self) -> None:
        """For ever. Raises `ClockWrong`."""
        while True:
            await trio.sleep(EVERY_S)
            await self.look()

    async def _read(self) -> Reading:
        raw = await self._attester.document(public_key=bytes(32))
        clock, wall_s = SystemClock(), time.time()  # noqa: TID251 - this is who asks whether it can be believed
        _, document = decode_document_untrusted(raw)
        # Valid at its own time: with which other could we ask?
        self._verifier.verify(raw, document.timestamp_s)
        return Reading(wall_s, clock.boot_ms() / 1_000, document.timestamp_ms / 1_000)
