"""What relays show of a key, which of them were not heard, and what its author took back since.

Any relay may leave out events, be down, or show what was deleted long ago; so several are asked, and none is believed
about what is not there.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from bot.adapters.relay_events import RelayEvents, Searched
from bot.tools.report import say_silent
from nips import kinds
from nips.event import Event
from nips.filters import Filter
from nips.relay_url import normal_url
from nips.tee.lifetime import CLOCK_SKEW_S

MAX_OWN_EVENTS = 100
INSTANCE = frozenset({kinds.ANNOUNCEMENT, kinds.OLD_ANNOUNCEMENT})


@dataclass(frozen=True)
class Lookup:
    """Over the relays that somebody named, at that time (Unix seconds). ``silent``: those that were not heard."""

    relays: RelayEvents
    relay_urls: tuple[str, ...]
    now: int
    silent: list[str] = field(default_factory=list)

    @property
    def _until(self) -> int:
        # A relay must not leave out what an honest clock, a little ahead of ours, has just dated.
        return self.now + CLOCK_SKEW_S

    async def find(self, wanted: Filter, also: Sequence[str] = ()) -> Searched:
        """The newest first; ``also``: further relays."""
        found = await self.relays.search([wanted], [*self.relay_urls, *also])
        self.silent.extend(url for url in found.silent if url not in self.silent)
        return found

    async def by_key(self, pubkey: str) -> Searched:
        """What tells what a key is: announcements, or else an app's own events."""
        authors = frozenset({pubkey})
        announcing = INSTANCE | {kinds.CONTAINER}
        told = await self.find(Filter(kinds=announcing, authors=authors, until=self._until))
        if told.events:
            return told
        # An app shows its certificates in events of its own. What a container says of it would be the
        # container's word alone: anybody's enclave could name anybody's key.
        own = await self.find(Filter(authors=authors, until=self._until, limit=MAX_OWN_EVENTS))
        certified = [event for event in own.events if event.has_tag("tee_root")]
        gone = await self.deleted(certified)
        live = [event for event in certified if event.id not in gone]
        return Searched(tuple(live or certified), own.silent)

    async def announcement_of(self, instance: str) -> Searched:
        """An instance's own."""
        announcing = frozenset({kinds.ANNOUNCEMENT})
        authors = frozenset({instance})
        return await self.find(Filter(kinds=announcing, authors=authors, until=self._until))

    async def newest(self, subject: Event, also: Sequence[str]) -> tuple[Event, ...]:
        """The subject, or what its author announced after it; several of one second."""
        if subject.kind != kinds.CONTAINER:
            return (subject,)
        later = Filter(
            kinds=frozenset({kinds.CONTAINER}),
            authors=frozenset({subject.pubkey}),
            since=subject.created_at,
            until=self._until,
            limit=MAX_OWN_EVENTS,
        )
        events = {e.id: e for e in (subject, *(await self.find(later, also)).events)}.values()
        last = max(event.created_at for event in events)
        return tuple(event for event in events if event.created_at == last)

    async def deleted(self, events: Sequence[Event], also: Sequence[str] = ()) -> Collection[str]:
        """The ids that a deletion by their own author names (NIP-09)."""
        if not events:
            return ()
        wanted = Filter(
            kinds=frozenset({kinds.DELETION}),
            authors=frozenset(event.pubkey for event in events),
            tags={"e": frozenset(event.id for event in events)},
            until=self._until,
        )
        found = (await self.find(wanted, also)).events
        named = {(deletion.pubkey, i) for deletion in found for i in deletion.tag_values("e")}
        return {event.id for event in events if (event.pubkey, event.id) in named}

    def nobody_has(self, found: Searched, what: str) -> str:
        """Which relays had nothing, and which were not heard: only the first says something of the subject."""
        urls = dict.fromkeys(map(normal_url, self.relay_urls))
        heard = [url for url in urls if url not in found.silent]
        told = (
            [f"{', '.join(heard)} {'has' if len(heard) == 1 else 'have'} {what}"] if heard else []
        )
        return "; ".join([*told, *([say_silent(found.silent)] if found.silent else [])])
