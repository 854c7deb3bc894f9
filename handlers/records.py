"""The rows that the store keeps, as frozen values. A change is a new value that is saved."""

from dataclasses import dataclass, field
from enum import Enum

from handlers.domain.ledger import MAIN_WALLET
from handlers.domain.lifecycle import State
from handlers.domain.pricing import Tariff
from handlers.domain.trial import Trial
from nips.keys import SecretKey


@dataclass(frozen=True)
class PublishedPort:
    """``host_port`` of this machine leads to ``container_port``, such as ``80/tcp``."""

    host_port: int
    container_port: str


@dataclass(frozen=True)
class Container:
    """One deployed container. ``env`` may hold secrets, so it is never shown by ``repr``."""

    pubkey: str  # the container's name everywhere: hex
    secret: bytes = field(repr=False)
    admin: str
    name: str
    asked_for: str  # the image reference as the admin wrote it
    image: str  # pinned: host/name@sha256:…
    units: int
    tariff: Tariff
    state: State
    state_since: int  # Unix time of the last change of state
    created_at: int
    reason: str | None = None  # why it failed, for its admin
    generation: int = 1  # raised by restart; the engine's container carries it as a label
    trial: Trial = Trial()
    owed_since: int = 0  # Unix time since when a start is owed
    env: dict[str, str] = field(default_factory=dict, repr=False)
    volumes: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()  # the image's ports, such as 80/tcp
    ports: tuple[PublishedPort, ...] = ()
    upgrade: str = ""
    stop_asked_at: int | None = None
    restarted_at: int = 0
    low_noticed: bool = False
    wallet: str = MAIN_WALLET  # where its money is, in the ledger's words
    app: str | None = None  # the app's key, once it proved it from inside
    taken_out: bool = False  # its balance was withdrawn, and what is left does not pay for a pause
    revision: int = 1  # raised whenever what the world is told of it changes

    @property
    def key(self) -> SecretKey:
        """Its key, derived anew; never in the store's thread."""
        return SecretKey(self.secret)

    @property
    def wallet_key(self) -> SecretKey | None:
        """The key of the container's own wallet, or None when its money lies in ours."""
        return None if self.wallet == MAIN_WALLET else self.key


@dataclass(frozen=True)
class Announcement:
    """What the world was told of a container. ``event_id`` None: nothing (any more)."""

    container: str
    event_id: str | None
    revision: int
    announced_at: int
    profile_at: int


class InvoiceState(Enum):
    """OPEN while the wallet is asked; CLOSED once it said that it was not paid in time, or never answered."""

    OPEN = "open"
    SETTLED = "settled"
    CLOSED = "closed"


@dataclass(frozen=True)
class InvoiceRecord:
    """An invoice of ours, and for whom its payment counts."""

    payment_hash: str
    container: str
    bolt11: str
    amount_msat: int
    created_at: int
    expires_at: int
    wallet: str
    state: InvoiceState = InvoiceState.OPEN
    next_look_at: int = 0
    answered_at: int = 0  # when the wallet last said that it is not paid yet
    zap_request: str | None = None
    anonymous: bool = False  # asked for over LNURL, by anybody


class OutgoingState(Enum):
    """A payment is UNKNOWN from the moment it is written down until the wallet's word is final."""

    UNKNOWN = "unknown"
    SETTLED = "settled"
    FAILED = "failed"


@dataclass(frozen=True)
class Outgoing:
    """A payment of ours. ``source`` is the ledger account it is taken from."""

    payment_id: str
    payment_hash: str
    bolt11: str
    source: str
    wallet: str
    amount_msat: int
    fee_reserve_msat: int
    created_at: int
    valid_until: int  # after this the wallet must ignore the request if it has not seen it
    state: OutgoingState = OutgoingState.UNKNOWN
    to_wallet: str | None = None  # set for a sweep between wallets of ours
    next_look_at: int = 0
    fees_msat: int = 0  # what the wallet said that it cost, once settled
    seen_unsettled: bool = False  # one of the wallet's books showed it on its way
    told: bool = False  # its owner knows that the wallet does not say what became of it


class Intent(Enum):
    """What an item of the outbox is: an event, or what becomes one when it is sent."""

    EVENT = "event"  # body: the event
    MESSAGE = "message"  # body: to, text
    RECEIPT = "receipt"  # body: payment_hash, preimage, paid_at


@dataclass(frozen=True)
class OutboxItem:
    """Something that must reach every relay named, or (none is named) our own. ``body`` is JSON."""

    item_id: int
    intent: Intent
    body: str
    relay_urls: tuple[str, ...]
    created_at: int
    attempts: int
