"""Wakes a loop early."""

import trio


class Nudge:
    """Wakes a loop early; many nudges before it runs are one."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def __call__(self) -> None:
        self._event.set()

    async def wait(self, at_most_s: float) -> bool:
        """Whether a nudge came before the time was over."""
        with trio.move_on_after(at_most_s):
            await self._event.wait()
        nudged = self._event.is_set()
        if nudged:
            # One that was not set may be waited on by somebody else, and must not be replaced.
            self._event = trio.Event()
        return nudged
