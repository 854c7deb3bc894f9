"""Who uses the relay, and how much of it in this minute: a guest is an address, whatever it connects with.

On this machine's own addresses each connection is a guest: they are our own processes, or everybody who comes
through a proxy.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from bot.clock import Clock
from bot.relay.gate import Gate

MINUTE_S = 60
REMEMBERED = 4_096
# A large frame costs as much as many small ones.
FRAME_BYTES = 4_096


@dataclass(eq=False)
class Guest:
    """What was used since the minute began. A reconnect does not begin it anew."""

    connections: int = 0
    minute: int = 0
    events: int = 0
    queries: int = 0
    frames: int = 0
    reading: trio.Lock = field(default_factory=trio.Lock)

    def turn_minute(self, now: int) -> None:
        if self.minute != now // MINUTE_S:
            self.minute = now // MINUTE_S
            self.events = self.queries = self.frames = 0

    def hears(self, frame: bytes, now: int) -> None:
        self.turn_minute(now)
        self.frames += 1 + len(frame) // FRAME_BYTES


class Guests:
    """By network, while they are connected, and some time after."""

    def __init__(self, clock: Clock, gate: Gate) -> None:
        self._clock, self._gate = clock, gate
        self._known: OrderedDict[str, Guest] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    @contextmanager
    def at(self, network: str) -> Iterator[Guest]:
        if self._gate.is_own(network):
            yield Guest()
            return
        guest = self._known.setdefault(network, Guest())
        self._known.move_to_end(network)
        guest.connections += 1
        try:
            yield guest
        finally:
            guest.connections -= 1
            self._forget_some()

    def _forget_some(self) -> None:
        if len(self._known) <= REMEMBERED:
            return
        gone = [network for network, guest in self._known.items() if not guest.connections]
        for network in gone[: len(self._known) - REMEMBERED]:
            del self._known[network]
