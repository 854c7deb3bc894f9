"""A state that comes and goes, and that tasks wait for."""

import trio


class Latch:
    """Shut at first. Who waits is let through when it opens, even if it shuts again at once.

    Only an event that was set is ever replaced: who waits on one that was not would wait for ever.
    """

    def __init__(self) -> None:
        self._opened = trio.Event()

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def open(self) -> None:
        self._opened.set()

    def shut(self) -> None:
        if self._opened.is_set():
            self._opened = trio.Event()

    async def wait(self) -> None:
        """Return when it is open."""
        await self._opened.wait()
