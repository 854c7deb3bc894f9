"""Who wants to hear of an event, as it happens: live filters, found by what they ask for.

Each filter stands under the rarest thing that it names, so that an event meets only likely ones. What a client's
filters weigh (filters, and values in them) is counted, by client, by guest and in all.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from nips.event import Event
from nips.filters import Filter

Key = tuple[str, str | int]
C = TypeVar("C", bound=Hashable)
_ANY: Key = ("any", "")


@dataclass(frozen=True)
class Weight:
    """Filters, and the values that they list."""

    filters: int = 0
    values: int = 0

    def __add__(self, other: "Weight") -> "Weight":
        return Weight(self.filters + other.filters, self.values + other.values)

    def __sub__(self, other: "Weight") -> "Weight":
        return Weight(self.filters - other.filters, self.values - other.values)

    def fits(self, most: "Weight") -> bool:
        return self.filters <= most.filters and self.values <= most.values


def weigh(filters: Iterable[Filter]) -> Weight:
    weight = Weight()
    for wanted in filters:
        lists = (wanted.ids, wanted.authors, wanted.kinds, *wanted.tags.values())
        weight += Weight(1, sum(len(values) for values in lists if values is not None))
    return weight


@dataclass(frozen=True, eq=False)
class Subscription(Generic[C]):
    """One REQ of one client, as long as it stands."""

    client: C
    sub_id: str
    filters: tuple[Filter, ...]


class Subscriptions(Generic[C]):
    """``limits``: the most that a client, a guest and all together may hold."""

    def __init__(self, client: Weight, guest: Weight, everybody: Weight) -> None:
        self._most_client, self._most_guest, self._most_all = client, guest, everybody
        self._by_client: dict[C, dict[str, Subscription[C]]] = {}
        self._by_key: defaultdict[Key, set[Subscription[C]]] = defaultdict(set)
        self._guests: dict[Hashable, Weight] = {}
        self._all = Weight()

    @property
    def weight(self) -> Weight:
        return self._all

    def of(self, client: C) -> dict[str, Subscription[C]]:
        return self._by_client.get(client, {})

    def add(self, client: C, guest: Hashable, sub_id: str, filters: tuple[Filter, ...]) -> bool:
        """In place of the one with that id. False when it is more than there is room for."""
        self.drop(client, guest, sub_id)
        weight = weigh(filters)
        mine = weigh(f for s in self.of(client).values() for f in s.filters)
        if not (
            (mine + weight).fits(self._most_client)
            and (self._guests.get(guest, Weight()) + weight).fits(self._most_guest)
            and (self._all + weight).fits(self._most_all)
        ):
            return False
        subscription = Subscription(client, sub_id, filters)
        self._by_client.setdefault(client, {})[sub_id] = subscription
        self._guests[guest] = self._guests.get(guest, Weight()) + weight
        self._all += weight
        for key in _keys(filters):
            self._by_key[key].add(subscription)
        return True

    def drop(self, client: C, guest: Hashable, sub_id: str) -> None:
        """It may have ended already."""
        subscription = self.of(client).get(sub_id)
        if subscription is None:
            return
        del self._by_client[client][sub_id]
        if not self._by_client[client]:
            del self._by_client[client]
        weight = weigh(subscription.filters)
        self._all -= weight
        self._guests[guest] -= weight
        if self._guests[guest] == Weight():
            del self._guests[guest]
        for key in _keys(subscription.filters):
            self._by_key[key].discard(subscription)
            if not self._by_key[key]:
                del self._by_key[key]

    def wanting(self, event: Event) -> Sequence[Subscription[C]]:
        """Each subscription that one of its filters admits the event to."""
        found: set[Subscription[C]] = set()
        by_key = self._by_key
        keys: list[Key] = [_ANY, ("id", event.id), ("author", event.pubkey), ("kind", event.kind)]
        keys += [("#" + tag[0], tag[1]) for tag in event.tags if len(tag) > 1 and len(tag[0]) == 1]
        for key in keys:
            if key in by_key:
                found |= by_key[key]
        return [s for s in found if any(f.matches(event) for f in s.filters)]


def _keys(filters: Iterable[Filter]) -> Iterator[Key]:
    for wanted in filters:
        if wanted.ids is not None:
            yield from (("id", event_id) for event_id in wanted.ids)
        elif wanted.tags:
            name = min(wanted.tags, key=lambda name: len(wanted.tags[name]))
            yield from ((f"#{name}", value) for value in wanted.tags[name])
        elif wanted.authors is not None:
            yield from (("author", author) for author in wanted.authors)
        elif wanted.kinds is not None:
            yield from (("kind", kind) for kind in wanted.kinds)
        else:
            yield _ANY
