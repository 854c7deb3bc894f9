"""Subscription filters (NIP-01): parsed once, matched many times."""

from dataclasses import dataclass, field

from nips.errors import BadFilter
from nips.event import Event

MAX_VALUES = 1_000
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Filter:
    """Fields are joined by AND, values inside one by OR; an absent field admits everything."""

    ids: frozenset[str] | None = None
    authors: frozenset[str] | None = None
    kinds: frozenset[int] | None = None
    tags: dict[str, frozenset[str]] = field(default_factory=dict)
    since: int | None = None
    until: int | None = None
    limit: int | None = None

    def matches(self, event: Event) -> bool:
        """Whether the event passes; ``limit`` plays no part here."""
        return (
            (self.kinds is None or event.kind in self.kinds)
            and (self.authors is None or event.pubkey in self.authors)
            and (self.ids is None or event.id in self.ids)
            and (self.since is None or event.created_at >= self.since)
            and (self.until is None or event.created_at <= self.until)
            and all(_has(event, name, wanted) for name, wanted in self.tags.items())
        )

    def as_dict(self) -> dict[str, object]:
        """The filter as NIP-01 JSON."""
        out: dict[str, object] = {}
        for name, values in (("ids", self.ids), ("authors", self.authors), ("kinds", self.kinds)):
            if values is not None:
                out[name] = sorted(values)
        out |= {f"#{name}": sorted(values) for name, values in self.tags.items()}
        for name, number in (("since", self.since), ("until", self.until), ("limit", self.limit)):
            if number is not None:
                out[name] = number
        return out


def _has(event: Event, name: str, wanted: frozenset[str]) -> bool:
    return any(t[0] == name and len(t) > 1 and t[1] in wanted for t in event.tags)


def parse_filter_untrusted(value: object) -> Filter:
    """A filter from decoded JSON. Unknown fields are refused, not ignored. Raises `BadFilter`."""
    if not isinstance(value, dict):
        raise BadFilter("a filter is a JSON object")
    tags: dict[str, frozenset[str]] = {}
    for name in value:
        if name not in _FIELDS:
            if not (len(name) == 2 and name[0] == "#" and name[1].isascii() and name[1].isalpha()):
                raise BadFilter(f"unknown filter field {name[:20]!r}")
            tags[name[1]] = _strings(value[name], name, exact_hex=name[1] in "ep")
    return Filter(
        ids=_strings(value["ids"], "ids", exact_hex=True) if "ids" in value else None,
        authors=_strings(value["authors"], "authors", exact_hex=True)
        if "authors" in value
        else None,
        kinds=_kinds(value["kinds"]) if "kinds" in value else None,
        tags=tags,
        since=_number(value, "since"),
        until=_number(value, "until"),
        limit=_number(value, "limit"),
    )


_FIELDS = frozenset({"ids", "authors", "kinds", "since", "until", "limit"})


def _strings(value: object, name: str, *, exact_hex: bool) -> frozenset[str]:
    if not isinstance(value, list) or len(value) > MAX_VALUES:
        raise BadFilter(f"{name} is not a list of at most {MAX_VALUES} values")
    for item in value:
        if not isinstance(item, str):
            raise BadFilter(f"{name} holds something that is not a string")
        if exact_hex and (len(item) != 64 or not _HEX.issuperset(item)):
            raise BadFilter(f"{name} holds something that is not 64 lower-case hex digits")
    return frozenset(value)


def _kinds(value: object) -> frozenset[int]:
    if not isinstance(value, list) or len(value) > MAX_VALUES:
        raise BadFilter(f"kinds is not a list of at most {MAX_VALUES} values")
    if not all(type(kind) is int and 0 <= kind <= 65_535 for kind in value):
        raise BadFilter("kinds holds something that is not a kind")
    return frozenset(value)


def _number(value: dict[str, object], name: str) -> int | None:
    number = value.get(name)
    if number is None:
        return None
    if type(number) is not int or number < 0:
        raise BadFilter(f"{name} is not a number from 0")
    return number
