"""What every handler is given: who we are, our ports to the world, and the policy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from handlers.alarms import Alarms
from handlers.domain.capacity import Capacity
from handlers.domain.dues import Dues
from handlers.domain.fees import FeeReserve
from handlers.domain.image import ImageRef
from handlers.domain.lane import SlowLanes
from handlers.domain.limits import UnitSize
from handlers.domain.meter import Rhythm, Run
from handlers.domain.ports_pool import PortRange
from handlers.domain.pricing import Tariff
from handlers.ports import Clock, Durability, Engine, Events, Nudges, Registry, Tasks, Wallet
from handlers.proof import Proof
from handlers.tables import Store
from nips.keys import SecretKey
from nips.tee.env import Env


@dataclass(frozen=True)
class Policy:
    """The operator's choices. All of them have defaults that are safe for strangers' money."""

    tariff: Tariff = Tariff()
    capacity: Capacity = Capacity()
    unit_size: UnitSize = UnitSize()
    rhythm: Rhythm = Rhythm()
    ports: PortRange = PortRange()
    quote_valid_s: int = 600
    invoice_valid_s: int = 600
    # While the wallet does not say that it was not paid, a payment is looked for so long after an invoice expired.
    late_payment_s: int = 24 * 3600
    # What was never paid, and expired, goes after so long.
    unpaid_kept_s: int = 3600
    # A balance must cover this much running before a paused container runs again.
    resume_ms: int = 3_600_000
    # A paused container keeps its place this long, its data that long.
    grace_s: int = 3_600
    retention_s: int = 14 * 24 * 3600
    # A stop must be confirmed within this time.
    confirm_stop_s: int = 600
    restart_every_s: int = 60
    # So long a container may take to stop, by its image's own signal: when it is restarted, and when it is paused.
    restart_grace_s: int = 30
    pause_grace_s: int = 10
    # A start that keeps failing for reasons of the moment is given up after this.
    start_deadline_s: int = 600
    max_open_invoices: int = 20
    # Of a container that was never paid, which costs nothing to make.
    max_open_invoices_unpaid: int = 4
    min_topup_msat: int = 1_000
    max_topup_msat: int = 10_000_000_000
    # The most that an outgoing payment's routing may cost, as the wallet limits it: a share plus a floor.
    # Payments that cost more raise it for so long.
    fee_reserve_ppm: int = 10_000
    fee_reserve_min_msat: int = 10_000
    fees_remembered_s: int = 30 * 24 * 3600
    # How long a wallet may take up a payment request before it must ignore it.
    pay_valid_s: int = 60
    # A route can hold a payment for two weeks; so long one is waited for that a wallet cannot show meanwhile.
    htlc_s: int = 15 * 24 * 3600
    # Revenue is swept out of containers' wallets in amounts of at least this.
    sweep_msat: int = 100_000
    announce_every_s: int = 600
    # A container's profile, which relays may have lost, is told again so often.
    profile_every_s: int = 6 * 3600
    # What ended so long ago and holds nothing leaves the books that are read all the time.
    archive_after_s: int = 3600

    @property
    def fee_reserve(self) -> FeeReserve:
        """What to hold back for routing fees, before anything was learnt."""
        return FeeReserve(self.fee_reserve_ppm, self.fee_reserve_min_msat)


@dataclass(frozen=True)
class Builtin:
    """A container of the instance's own, as its image names it. ``image`` by digest; ``env`` may hold secrets."""

    name: str
    image: ImageRef
    units: int
    env: Mapping[str, str] = field(default_factory=dict, repr=False)


def own_units(builtins: Iterable[Builtin]) -> int:
    """What the instance's own containers have, beside what is for sale."""
    return sum(builtin.units for builtin in builtins)


@dataclass(frozen=True)
class Presence:
    """Who we are to others, and where we can be reached. ``app_host`` is the address under which published ports open."""

    name: str
    about: str
    repo: str
    version: str
    relay_urls: tuple[str, ...]
    public_url: str | None
    app_host: str
    # Where the instance is announced beside its own relays.
    announce_urls: tuple[str, ...] = ()
    # Where containers reach us from inside, as their environment tells them.
    container_endpoint: str | None = None

    @property
    def lud16_host(self) -> str | None:
        """The host part of our own lightning addresses."""
        return self.public_url.partition("://")[2].rstrip("/") if self.public_url else None


@dataclass(frozen=True)
class Facts:
    """What a transaction may know of the world: values that were read before it began.

    ``now`` is Unix time in seconds, ``boot_ms`` boot time; ``runs`` are the runs of the containers it is about.
    """

    now: int
    boot_ms: int
    policy: Policy
    runs: Mapping[str, Run] = field(default_factory=dict)


class OnThisDisk:
    """`handlers.ports.Durability` of a machine whose own disk is what survives."""

    async def reached(self) -> bool:
        """At once."""
        return True

    def soon(self) -> None:
        """It is."""


@dataclass(frozen=True)
class Context:
    """Handlers see the world only through this."""

    key: SecretKey = field(repr=False)
    store: Store
    wallet: Wallet
    engine: Engine
    registry: Registry
    events: Events
    clock: Clock
    nudge: Nudges
    tasks: Tasks
    policy: Policy
    presence: Presence
    # None outside of an enclave: then nothing is proved, and everything says debug.
    proof: Proof | None = None
    durability: Durability = field(default_factory=OnThisDisk)
    alarms: Alarms = field(default_factory=Alarms)
    builtins: tuple[Builtin, ...] = ()
    # Which of them is our wallet; None where the operator has it.
    own_wallet: str | None = None
    dues: Dues = field(default_factory=Dues)
    slow_lanes: SlowLanes = field(default_factory=SlowLanes)

    @property
    def env(self) -> Env:
        """How far anybody may trust us, by what we can prove."""
        return self.proof.env if self.proof is not None else Env.DEBUG

    def facts(self, *pubkeys: str) -> Facts:
        """As of now; ``pubkeys``: the containers whose runs must be known."""
        runs = self.engine.runs() if pubkeys else {}
        known = {pubkey: runs[pubkey] for pubkey in pubkeys if pubkey in runs}
        return Facts(self.clock.now(), self.clock.boot_ms(), self.policy, known)


@dataclass(frozen=True)
class Caller:
    """Who asks. ``public``: the request and its answer can be read by everybody."""

    pubkey: str
    public: bool
