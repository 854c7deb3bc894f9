"""What the escrow client needs of the world."""

from collections.abc import Callable, Sequence
from typing import Protocol

from nips.event import Event, VerifiedEvent
from nips.filters import Filter


class Attester(Protocol):
    """The security module: attests a session's key. Raises when it fails."""

    async def document(self, *, public_key: bytes, nonce: bytes | None = None) -> bytes: ...


class Searched(Protocol):
    """What relays hold, and which of them did not answer."""

    @property
    def events(self) -> Sequence[Event]: ...
    @property
    def silent(self) -> tuple[str, ...]: ...


class Relays(Protocol):
    """Finds announcements, and carries one request and its reply. Nothing that comes is trusted."""

    async def search(self, filters: Sequence[Filter], relay_urls: Sequence[str]) -> Searched: ...

    async def ask(
        self,
        url: str,
        request: VerifiedEvent,
        answers: Filter,
        is_reply: Callable[[VerifiedEvent], bool],
        within_s: float,
    ) -> VerifiedEvent | None: ...


class Clock(Protocol):
    """Unix seconds."""

    def now(self) -> int: ...
