"""What the handlers need of the world, as Protocols. Adapters in ``bot/adapters`` fulfil them.

Refusals and uncertainty are values here: a wallet that does not answer is `PayStatus.UNKNOWN`, an
image that cannot be run is `CannotStart`. What raises is a fault of ours.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from handlers.domain.evidence import Book
from handlers.domain.image import ImageRef
from handlers.domain.limits import Limits
from handlers.domain.meter import Ended, Run
from handlers.domain.plan import Found
from handlers.records import PublishedPort
from nips.event import VerifiedEvent
from nips.filters import Filter
from nips.keys import SecretKey


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
    """Only SETTLED and FAILED are final. ABSENT: not in the wallet's books, which alone proves nothing."""

    SETTLED = "settled"
    FAILED = "failed"
    PENDING = "pending"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class PayResult:
    """What became of an outgoing payment. ``books``: where it was found, or, when ABSENT, is missing."""

    status: PayStatus
    fees_msat: int = 0
    preimage: str | None = None
    reason: str = ""
    books: frozenset[Book] = frozenset()

    @property
    def is_seen_unsettled(self) -> bool:
        """Whether one of the wallet's books shows it on its way. A failed one says nothing of that: some books hold
        only what came to an end."""
        return self.status is PayStatus.PENDING and bool(self.books)


@dataclass(frozen=True)
class Hint:
    """Something happened: to this payment hash, or somewhere in this container's wallet.

    ``paid``: what the wallet said of an outgoing payment by itself (a notification, an answer that came late).
    """

    payment_hash: str | None = None
    container: str | None = None
    paid: PayResult | None = None


class Wallet(Protocol):
    """Lightning: one wallet of ours, and with the nwc-enclaved extension one for each container.

    ``owner`` is the key of a container that has a wallet of its own, or None for ours. Whatever does
    not answer in time is UNKNOWN or UNAVAILABLE, never failed.
    """

    def wallet_for(self, container: str) -> str:
        """The ledger's account for a new container's money: ``wallet:main`` or ``wallet:<pubkey>``."""
        ...

    @property
    def service_pubkey(self) -> str | None:
        """The wallet's own key, once it is known."""
        ...

    @property
    def zap_address_host(self) -> str | None: ...
    async def make_invoice(self, wanted: InvoiceWanted) -> Minted | WalletProblem: ...
    async def make_own_invoice(self, amount_msat: int, memo: str) -> Minted | WalletProblem: ...
    async def look_up(self, payment_hash: str, owner: SecretKey | None) -> Incoming: ...
    async def received(self, owner: SecretKey, since: int) -> list[Incoming]: ...
    async def pay(self, bolt11: str, amount_msat: int, owner: SecretKey | None) -> PayResult:
        """Send it once. FAILED only if the wallet says that it never tried, or has it as failed in its book."""
        ...

    async def look_up_payment(
        self, payment_hash: str, owner: SecretKey | None, since: int
    ) -> PayResult:
        """What the wallet's books say of a payment that was made at ``since`` or later."""
        ...

    async def balance(self, owner: SecretKey | None) -> int | WalletProblem:
        """What the wallet holds, in msat; REFUSED where it does not tell."""
        ...


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
    async def halt(self, pubkey: str, grace_s: int) -> None:
        """By the image's own stop signal; killed when it goes on for longer than ``grace_s``."""
        ...

    async def remove(self, pubkey: str, *, keep_volumes: bool) -> None:
        """With ``keep_volumes``, what it wrote to its log is kept as well."""
        ...

    async def logs(self, pubkey: str, lines: int) -> str: ...
    async def exit_reason(self, pubkey: str) -> str: ...
    def progress(self, pubkey: str) -> str | None:
        """How far a start has come that waits for its image, in words; None when none does."""
        ...

    async def addresses(self) -> dict[str, str]:
        """Which container has which address now: ``{address: pubkey}``."""
        ...

    def runs(self) -> dict[str, Run]: ...
    def unmetered(self) -> frozenset[str]:
        """Containers that the engine has called running for a while, though no run of theirs is found."""
        ...

    def ended(self) -> list[Ended]:
        """Runs that were seen alive and are over now, until `forget_ended`."""
        ...

    def forget_ended(self, ended: Ended) -> None: ...


class Attester(Protocol):
    """The security module of the enclave we live in. Raises when it fails: then nothing can be proved."""

    async def document(self, *, public_key: bytes, nonce: bytes | None = None) -> bytes: ...


class Events(Protocol):
    """Events that relays hold. Their ids and signatures were checked, and nothing else."""

    async def find(
        self, filters: Sequence[Filter], relay_urls: Sequence[str]
    ) -> list[VerifiedEvent]: ...


class Durability(Protocol):
    """When what was written survives the loss of this machine: not before a copy of it is elsewhere, and known there as
    the newest. What makes others act upon it, an invoice or a payment, leaves only then: else a restore would not know
    of it, and the same money would go out, or come in for nobody."""

    async def reached(self) -> bool:
        """Wait until all that is written now would be restored. False: that is not so, and nothing may leave."""
        ...

    def soon(self) -> None:
        """Money moved: a copy is worth making now, though nobody waits for it."""
        ...


class Clock(Protocol):
    """Unix seconds, and milliseconds of boot time that no wall-clock step moves."""

    def now(self) -> int: ...
    def boot_ms(self) -> int: ...


class Nudges(Protocol):
    """For the loops that would otherwise look again only at their next turn."""

    def reconcile(self) -> None: ...
    def announce(self) -> None: ...
    def outbox(self) -> None: ...


class Tasks(Protocol):
    """Doing several things at a time. A surprise with one of them is logged, and concerns no other."""

    async def each(
        self, what: str, keys: Sequence[str], work: Callable[[str], Awaitable[None]]
    ) -> None:
        """Some at a time; returns when all are done."""
        ...

    async def begin(self, what: str, key: str, work: Callable[[], Awaitable[None]]) -> None:
        """In the background, unless something with that key is under way; may return at once."""
        ...
