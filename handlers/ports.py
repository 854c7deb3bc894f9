"""What the handlers need of the world, as Protocols. Adapters in ``bot/adapters`` fulfil them.

Refusals and uncertainty are values here: a wallet that does not answer is `PayStatus.UNKNOWN`, an
image that cannot be run is `CannotStart`. What raises is a fault of ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeVar

from handlers.domain.image import ImageRef
from handlers.domain.ledger import Entry
from handlers.domain.lifecycle import State
from handlers.domain.limits import Limits
from handlers.domain.meter import Ended, Meter, Run
from handlers.domain.plan import Found
from handlers.domain.quote import Quote
from handlers.records import Container, InvoiceRecord, OutboxItem, Outgoing, PublishedPort
from nips.event import Event
from nips.filters import Filter
from nips.keys import SecretKey

T = TypeVar("T")


class Tx(Protocol):
    """One transaction on the store: synchronous, all or nothing, nobody else writes meanwhile."""

    def container(self, pubkey: str) -> Container | None: ...
    def containers(self, states: Sequence[State] | None = None) -> list[Container]: ...
    def containers_of(self, admin: str) -> list[Container]: ...
    def add_container(self, container: Container) -> None: ...
    def save_container(self, container: Container) -> None: ...
    def held_units(self) -> int: ...
    def waiting_of(self, admin: str) -> int: ...
    def waiting_units(self) -> int: ...
    def taken_ports(self) -> set[int]: ...
    def take_ports(self, pubkey: str, ports: Sequence[PublishedPort]) -> None: ...
    def drop_ports(self, pubkey: str) -> None: ...

    def quote(self, quote_id: str) -> Quote | None: ...
    def add_quote(self, quote: Quote, now: int) -> None: ...

    def invoice(self, payment_hash: str) -> InvoiceRecord | None: ...
    def add_invoice(self, invoice: InvoiceRecord) -> None: ...
    def save_invoice(self, invoice: InvoiceRecord) -> None: ...
    def invoices_to_look_at(self, now: int, limit: int) -> list[InvoiceRecord]: ...
    def invoices_of(self, container: str) -> list[InvoiceRecord]: ...
    def prune_invoices(self, before: int) -> None: ...
    def open_invoices_of(self, container: str, now: int) -> list[InvoiceRecord]: ...

    def outgoing(self, payment_id: str) -> Outgoing | None: ...
    def outgoing_with_hash(self, payment_hash: str) -> list[Outgoing]: ...
    def add_outgoing(self, outgoing: Outgoing) -> None: ...
    def save_outgoing(self, outgoing: Outgoing) -> None: ...
    def unknown_outgoing(self) -> list[Outgoing]: ...
    def outgoing_to_look_at(self, now: int, limit: int) -> list[Outgoing]: ...
    def last_sweep_of(self, wallet: str) -> Outgoing | None: ...

    def post(self, entry: Entry, at: int) -> bool:
        """Write a ledger entry; False when its key exists already. Raises on a negative balance."""
        ...

    def balance(self, account: str) -> int: ...

    def meter(self, pubkey: str) -> Meter | None: ...
    def save_meter(self, pubkey: str, meter: Meter) -> None: ...

    def enqueue(self, event: Event, relay_urls: Sequence[str], at: int) -> None:
        """Have an event published, whatever happens: it is written with the state that it tells of."""
        ...

    def outbox(self, now: int, limit: int) -> list[OutboxItem]: ...
    def outbox_sent(self, item_id: int) -> None: ...
    def outbox_later(self, item_id: int, next_at: int, relay_urls: Sequence[str]) -> None: ...


class Store(Protocol):
    """Durable state. When `write` returns, what it wrote survives a crash."""

    async def read(self, work: Callable[[Tx], T]) -> T: ...
    async def write(self, work: Callable[[Tx], T]) -> T: ...


class WalletProblem(Enum):
    """Why there is no invoice."""

    UNAVAILABLE = "the wallet does not answer; retry later"
    REFUSED = "the wallet refuses; retry later"
    LYING = "the wallet answered with another invoice than was asked for"


@dataclass(frozen=True)
class InvoiceWanted:
    """What to ask the wallet for: money for ``container``, to lie in ``wallet`` (the ledger's word)."""

    container: str
    wallet: str
    amount_msat: int
    description: str
    description_hash: str | None
    expiry_s: int


@dataclass(frozen=True)
class Minted:
    """An invoice that was checked against what was asked for."""

    bolt11: str
    payment_hash: str
    amount_msat: int
    created_at: int
    expires_at: int


class IncomingState(Enum):
    """What the wallet says of an invoice. UNKNOWN: no answer, or one that contradicts itself."""

    SETTLED = "settled"
    NOT_YET = "not yet"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Incoming:
    """The state of an invoice; amount and times only mean something when SETTLED."""

    payment_hash: str
    state: IncomingState
    amount_msat: int = 0
    preimage: str | None = None
    settled_at: int = 0
    bolt11: str = ""


class PayStatus(Enum):
    """NOT_FOUND: the wallet has never seen it. Only SETTLED and FAILED are final."""

    SETTLED = "settled"
    FAILED = "failed"
    UNKNOWN = "unknown"
    NOT_FOUND = "not found"


@dataclass(frozen=True)
class PayResult:
    """What became of an outgoing payment."""

    status: PayStatus
    fees_msat: int = 0
    preimage: str | None = None
    reason: str = ""


class Wallet(Protocol):
    """Lightning: one wallet of ours, and with the nwc-enclaved extension one for each container.

    ``owner`` is the key of a container that has a wallet of its own, or None for ours. Whatever does
    not answer in time is UNKNOWN or UNAVAILABLE, never failed.
    """

    def wallet_for(self, container: str) -> str:
        """The ledger's account for a new container's money: ``wallet:main`` or ``wallet:<pubkey>``."""
        ...

    @property
    def zap_address_host(self) -> str | None: ...
    async def make_invoice(self, wanted: InvoiceWanted) -> Minted | WalletProblem: ...
    async def make_own_invoice(self, amount_msat: int, memo: str) -> Minted | WalletProblem: ...
    async def look_up(self, payment_hash: str, owner: SecretKey | None) -> Incoming: ...
    async def received(self, owner: SecretKey, since: int) -> list[Incoming]: ...
    async def pay(self, bolt11: str, amount_msat: int, owner: SecretKey | None) -> PayResult: ...
    async def look_up_payment(self, payment_hash: str, owner: SecretKey | None) -> PayResult: ...


@dataclass(frozen=True)
class ResolvedImage:
    """What a registry says of an image for linux/amd64. ``digest`` is its manifest's; ``image_id`` its
    config's, 64 hex digits: what signatures over images name."""

    ref: ImageRef
    digest: str
    image_id: str
    compressed_bytes: int
    labels: Mapping[str, str]
    ports: tuple[str, ...]
    volumes: tuple[str, ...]


@dataclass(frozen=True)
class ImageProblem:
    """Why an image cannot be resolved. ``permanent``: asking again will not help."""

    text: str
    permanent: bool


class Registry(Protocol):
    """Any OCI registry. ``caller`` is whose question it is: nobody has more than a few places at once."""

    async def resolve(self, ref: ImageRef, caller: str = "") -> ResolvedImage | ImageProblem: ...


@dataclass(frozen=True)
class ContainerSpec:
    """All that the engine needs to run one container. ``admin`` is for whom its image is fetched."""

    pubkey: str
    image: str
    generation: int
    limits: Limits
    env: Mapping[str, str] = field(repr=False)
    volumes: tuple[str, ...]
    ports: tuple[PublishedPort, ...]
    admin: str = ""


@dataclass(frozen=True)
class CannotStart:
    """Why a container does not run. ``permanent``: the image's fault, not the moment's.

    ``waited_s``: how long it only stood in line for its image behind others', which is not its own fault.
    """

    reason: str
    permanent: bool
    waited_s: int = 0


class Engine(Protocol):
    """Docker, or whatever runs containers. Every method may be called twice, or after a crash."""

    async def found(self) -> dict[str, Found]: ...
    async def start(self, spec: ContainerSpec) -> CannotStart | None: ...
    async def halt(self, pubkey: str) -> None: ...
    async def remove(self, pubkey: str, *, keep_volumes: bool) -> None: ...
    async def logs(self, pubkey: str, lines: int) -> str: ...
    async def exit_reason(self, pubkey: str) -> str: ...
    def progress(self, pubkey: str) -> str | None:
        """How far a start has come that waits for its image, in words; None when none does."""
        ...

    async def addresses(self) -> dict[str, str]:
        """Which container has which address now: ``{address: pubkey}``."""
        ...

    def runs(self) -> dict[str, Run]: ...
    def take_ended(self) -> list[Ended]:
        """Runs that were seen alive and are over now; each is handed out once."""
        ...


class Attester(Protocol):
    """The security module of the enclave we live in. Raises when it fails: then nothing can be proved."""

    async def document(self, *, public_key: bytes, nonce: bytes | None = None) -> bytes: ...


class Events(Protocol):
    """Events that relays hold. What comes was checked for id and signature, and for nothing else."""

    async def find(self, filters: Sequence[Filter], relay_urls: Sequence[str]) -> list[Event]: ...


class Clock(Protocol):
    """Unix seconds, and milliseconds of boot time that no wall-clock step moves."""

    def now(self) -> int: ...
    def boot_ms(self) -> int: ...


class Wake(Protocol):
    """Nudges for the loops that would otherwise look again only at their next turn."""

    def reconcile(self) -> None: ...
    def announce(self) -> None: ...
    def outbox(self) -> None: ...
