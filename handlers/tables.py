"""The store, table by table: what one transaction can do. Adapters in ``bot/adapters/store`` fulfil it.

A transaction is a plain function ``(Tx, *values)``: it runs in the store's own thread, alone, all or nothing, and is
given values only (`handlers.context.Facts`), never an engine, a clock or a key.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from handlers.domain.fees import WorstFees
from handlers.domain.ledger import Entry
from handlers.domain.lifecycle import State
from handlers.domain.meter import Meter
from handlers.domain.quote import Quote
from handlers.records import (
    Announcement,
    Container,
    InvoiceRecord,
    OutboxItem,
    Outgoing,
    PublishedPort,
)
from nips.event import Event

T = TypeVar("T")
P = ParamSpec("P")


class StoreUnavailable(Exception):
    """Nothing can be written (or read) now; the message says why, in words for a stranger."""


@dataclass(frozen=True)
class Count:
    """So many containers, with so many units in all."""

    containers: int
    units: int


class Containers(Protocol):
    """What was deployed and is not over."""

    def find(self, pubkey: str) -> Container | None: ...
    def list_in(self, states: Sequence[State]) -> list[Container]: ...
    def list_of(self, admin: str, limit: int) -> list[Container]: ...
    def add(self, container: Container) -> None: ...
    def save(self, container: Container) -> None: ...
    def shift_times(self, by_s: int, *, after: int, until: int) -> None:
        """Move when a state began, and a start was owed, where that lies between these times."""
        ...

    def count(self, states: Sequence[State]) -> Count: ...
    def count_unpaid_of(self, admin: str, since: int) -> Count:
        """What that key deployed since then, and never paid."""
        ...


class Archive(Protocol):
    """What is over. Its keys stay: money may still come."""

    def fill(self, ended_before: int, left_msat: int, limit: int) -> int:
        """Take what ended before then, awaits nothing any more, and holds less than a sat of its admin's, and in a
        wallet of its own less than ``left_msat``; how many."""
        ...

    def find(self, pubkey: str) -> Container | None: ...
    def bring_back(self, pubkey: str) -> None:
        """Among the containers again, as one that is stopped: it was paid after all. Nothing if it is not here."""
        ...


class Ports(Protocol):
    """Which ports of this machine belong to whom."""

    def taken(self) -> set[int]: ...
    def take(self, pubkey: str, ports: Sequence[PublishedPort]) -> None: ...
    def drop(self, pubkey: str) -> None: ...


class Quotes(Protocol):
    """What was offered lately."""

    def find(self, quote_id: str) -> Quote | None: ...
    def add(self, quote: Quote, now: int) -> None: ...


class Invoices(Protocol):
    """Invoices of ours, and for whom they count."""

    def find(self, payment_hash: str) -> InvoiceRecord | None: ...
    def add(self, invoice: InvoiceRecord) -> None: ...
    def save(self, invoice: InvoiceRecord) -> None: ...
    def list_due(self, now: int, limit: int) -> list[InvoiceRecord]: ...
    def list_open_of(self, container: str) -> list[InvoiceRecord]:
        """Those that are not anonymous, the oldest first."""
        ...

    def put_off_of(self, container: str, past_expiry_s: int, until: int) -> None:
        """Those that are open are next asked about so long after they expired, or then, if that is sooner."""
        ...

    def put_off_anonymous_of(
        self, container: str, past_expiry_s: int, until: int, *, but_newest: int
    ) -> None:
        """As `put_off_of`, for anonymous ones, except for so many."""
        ...

    def prune(self, before: int) -> None: ...


class Payments(Protocol):
    """Outgoing payments. ``save`` adds one, or writes what changed."""

    def find(self, payment_id: str) -> Outgoing | None: ...
    def find_by_hash(self, payment_hash: str) -> Outgoing | None: ...
    def find_last_sweep_of(self, wallet: str) -> Outgoing | None: ...
    def find_witness(self, other_than: str, *, unsettled: bool) -> Outgoing | None:
        """The newest other payment that is settled, or (``unsettled``) that a book showed before it was."""
        ...

    def list_due(self, now: int, limit: int) -> list[Outgoing]: ...
    def list_unknown(self) -> list[Outgoing]: ...
    def save(self, outgoing: Outgoing) -> None: ...
    def worst_fees(self, floor_msat: int, since: int) -> WorstFees:
        """The most that payments since then cost."""
        ...


class Ledger(Protocol):
    """The double-entry book."""

    def post(self, entry: Entry, at: int) -> bool:
        """Write an entry; False when its key exists already. Raises on a negative balance."""
        ...

    def balance(self, account: str) -> int: ...
    def owed_from(self, wallet: str) -> int:
        """What tenants could ask back whose money lies in that wallet, in msat."""
        ...


class Meters(Protocol):
    """How far each container has been charged."""

    def find(self, pubkey: str) -> Meter | None: ...
    def save(self, pubkey: str, meter: Meter) -> None: ...


class Outbox(Protocol):
    """What must reach relays, written with the state that it tells of. Without ``relay_urls``: our own."""

    def post(
        self, event: Event, at: int, relay_urls: Sequence[str] = (), subject: str = ""
    ) -> None:
        """An event. One with a ``subject`` takes the place of an earlier one that was not sent yet."""
        ...

    def tell(self, pubkey: str, text: str, at: int) -> None:
        """A private message; it is sealed when it is sent."""
        ...

    def promise_receipt(
        self, payment_hash: str, preimage: str | None, paid_at: int, at: int
    ) -> None:
        """The receipt of a zap; it is made when it is sent."""
        ...

    def list_due(self, now: int, limit: int) -> list[OutboxItem]: ...
    def become(self, item_id: int, event: Event, relay_urls: Sequence[str]) -> None:
        """What was an intent is this event from now on."""
        ...

    def sent(self, item_id: int) -> None: ...
    def put_off(self, item_id: int, next_at: int, relay_urls: Sequence[str]) -> None: ...


class Announcements(Protocol):
    """What the world was told of each container, apart from what is."""

    def list_due(
        self, now: int, every_s: int, limit: int
    ) -> "list[tuple[Container, Announcement | None]]":
        """Containers that changed since they were told of, or were told of long ago, with what was told."""
        ...

    def save(self, announcement: Announcement) -> None: ...


class Tx(Protocol):
    """One transaction. Nobody else writes meanwhile."""

    @property
    def containers(self) -> Containers: ...
    @property
    def archive(self) -> Archive: ...
    @property
    def ports(self) -> Ports: ...
    @property
    def quotes(self) -> Quotes: ...
    @property
    def invoices(self) -> Invoices: ...
    @property
    def outgoing(self) -> Payments: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def meters(self) -> Meters: ...
    @property
    def outbox(self) -> Outbox: ...
    @property
    def announcements(self) -> Announcements: ...


class Store(Protocol):
    """Durable state. When `write` returns, what it wrote survives a crash. Both raise `StoreUnavailable`."""

    async def read(
        self, work: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    async def write(
        self, work: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
