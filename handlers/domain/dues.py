"""When each running container must be looked at again, so that a tick costs nothing while nothing is due.

In memory only: what is not known is due, so a restart looks at everything once. Too early is harmless, since
`meter.due` decides again; whatever lowers a balance must say so by `hurry`.
"""

from collections.abc import Mapping

from handlers.domain.meter import Run


class Dues:
    """By container: the run that was looked at, and the boot time of the next look."""

    def __init__(self) -> None:
        self._next: dict[str, tuple[Run, int]] = {}

    def among(self, runs: Mapping[str, Run], now_ms: int) -> list[str]:
        """Those of these that are due now. Of others nothing is remembered."""
        self._next = {pubkey: due for pubkey, due in self._next.items() if pubkey in runs}
        return [pubkey for pubkey, run in runs.items() if self._is_due(pubkey, run, now_ms)]

    def _is_due(self, pubkey: str, run: Run, now_ms: int) -> bool:
        known, at_ms = self._next.get(pubkey, (None, 0))
        return known != run or at_ms <= now_ms

    def set(self, pubkey: str, run: Run, at_ms: int) -> None:
        """Not before then."""
        self._next[pubkey] = (run, at_ms)

    def hurry(self, pubkey: str) -> None:
        """At the next tick."""
        self._next.pop(pubkey, None)
