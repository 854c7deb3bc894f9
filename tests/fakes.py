"""Simulators of the world's ports: they behave, remember, fail and lie, and survive a crash of the server."""

import hashlib
import secrets
from dataclasses import dataclass, field, replace

from bot.adapters.relay_events import Searched
from handlers.context import Context, Policy, Presence
from handlers.domain.evidence import Book
from handlers.domain.ledger import MAIN_WALLET
from handlers.domain.meter import Ended, Run
from handlers.domain.plan import Found, Live
from handlers.ports import (
    CannotStart,
    ContainerSpec,
    ImageProblem,
    Incoming,
    IncomingState,
    InvoiceWanted,
    Minted,
    PayResult,
    PayStatus,
    ResolvedImage,
    WalletProblem,
)
from nips.bolt11 import decode_invoice_untrusted, encode_invoice
from nips.event import Event
from nips.keys import SecretKey

NODE = b"\x11" * 32
STRANGERS_NODE = b"\x22" * 32
DIGEST = "sha256:" + "ab" * 32
IMAGE_ID = "cd" * 32


def altered(event: Event, **changes: object) -> Event:
    """The event as a forger would pass it on: other fields, the old id and signature."""
    return Event(**(event.as_dict() | changes))


@dataclass
class FakeClock:
    """Wall and boot time that only move when told."""

    unix: int = 1_800_000_000
    boot: int = 1_000_000

    def now(self) -> int:
        return self.unix

    def boot_ms(self) -> int:
        return self.boot

    def advance(self, seconds: float) -> None:
        self.unix += int(seconds)
        self.boot += int(seconds * 1_000)


@dataclass
class FakeWallet:
    """One node with accounts: `main` is ours, others are containers'. Strangers pay by `settle`."""

    clock: FakeClock
    per_container: bool = False
    balances: dict[str, int] = field(default_factory=lambda: {MAIN_WALLET: 0})
    invoices: dict[str, dict] = field(default_factory=dict)
    payments: dict[str, dict] = field(default_factory=dict)
    pays_sent: int = 0
    looks: int = 0  # how often it was asked about an invoice
    # Faults, each for the next call or for good.
    silent: bool = False
    next_pay: PayStatus | None = None  # the outcome of the next payment, as the node sees it
    answer_pay: bool = True  # False: carried out, but the answer gets lost
    wrong_amount: bool = False
    fee_msat: int = 0
    # Which outgoing payments its books show, and in which book.
    shows: frozenset[PayStatus] = frozenset(
        {PayStatus.SETTLED, PayStatus.FAILED, PayStatus.UNKNOWN}
    )
    book: Book = Book.LOOKUP
    says_failed: bool = False  # the answer is PAYMENT_FAILED, whatever becomes of it
    tells_balance: bool = True
    zap_address_host: str | None = None
    service_pubkey: str | None = "f" * 64

    def wallet_for(self, container: str) -> str:
        return f"wallet:{container}" if self.per_container else MAIN_WALLET

    async def make_invoice(self, wanted: InvoiceWanted) -> Minted | WalletProblem:
        if self.silent:
            return WalletProblem.UNAVAILABLE
        return self.mint(
            wanted.wallet, wanted.amount_msat, wanted.description_hash, wanted.expiry_s
        )

    async def make_own_invoice(self, amount_msat: int, memo: str) -> Minted | WalletProblem:
        return (
            WalletProblem.UNAVAILABLE
            if self.silent
            else self.mint(MAIN_WALLET, amount_msat, None, 600)
        )

    def mint(
        self, wallet: str, amount_msat: int, description_hash: str | None, expiry_s: int
    ) -> Minted:
        preimage = secrets.token_bytes(32)
        payment_hash = hashlib.sha256(preimage).hexdigest()
        now = self.clock.now()
        bolt11 = encode_invoice(
            NODE, currency="bcrt", amount_msat=amount_msat, payment_hash=payment_hash, now=now,
            expiry_s=expiry_s, description="x", description_hash=description_hash,
        )  # fmt: skip
        self.invoices[payment_hash] = {
            "wallet": wallet, "amount": amount_msat, "preimage": preimage.hex(), "settled": False, "bolt11": bolt11,
        }  # fmt: skip
        return Minted(bolt11, payment_hash, amount_msat, now, now + expiry_s)

    def settle(self, payment_hash: str) -> None:
        """Somebody out there pays an invoice of ours."""
        invoice = self.invoices[payment_hash]
        assert not invoice["settled"]
        invoice["settled"] = True
        self.balances[invoice["wallet"]] = (
            self.balances.get(invoice["wallet"], 0) + invoice["amount"]
        )

    def deposit(self, wallet: str, amount_msat: int) -> str:
        """Money that came to a container's wallet by an invoice that we did not ask for."""
        minted = self.mint(wallet, amount_msat, None, 600)
        self.settle(minted.payment_hash)
        return minted.payment_hash

    async def look_up(self, payment_hash: str, owner: SecretKey | None) -> Incoming:
        self.looks += 1
        if self.silent:
            return Incoming(payment_hash, IncomingState.UNKNOWN)
        invoice = self.invoices.get(payment_hash)
        if invoice is None or not invoice["settled"]:
            return Incoming(payment_hash, IncomingState.NOT_YET)
        amount = invoice["amount"] - 1 if self.wrong_amount else invoice["amount"]
        return Incoming(
            payment_hash, IncomingState.SETTLED, amount, invoice["preimage"], self.clock.now()
        )

    async def received(self, owner: SecretKey, since: int) -> list[Incoming]:
        mine = f"wallet:{owner.pubkey}"
        return [
            Incoming(
                h, IncomingState.SETTLED, i["amount"], i["preimage"], self.clock.now(), i["bolt11"]
            )
            for h, i in self.invoices.items()
            if i["wallet"] == mine and i["settled"]
        ]

    async def pay(self, bolt11: str, amount_msat: int, owner: SecretKey | None) -> PayResult:
        self.pays_sent += 1
        result = self._pay(bolt11, amount_msat, owner)
        return result if self.answer_pay and not self.says_failed else PayResult(PayStatus.UNKNOWN)

    def _pay(self, bolt11: str, amount_msat: int, owner: SecretKey | None) -> PayResult:
        invoice = decode_invoice_untrusted(bolt11)
        wallet = MAIN_WALLET if owner is None else f"wallet:{owner.pubkey}"
        outcome, self.next_pay = self.next_pay or PayStatus.SETTLED, None
        if outcome is PayStatus.ABSENT:
            return PayResult(PayStatus.UNKNOWN)  # the request never arrived
        paid_before = self.payments.get(invoice.payment_hash, {}).get("status")
        assert paid_before is None or paid_before is PayStatus.FAILED, "paid twice"
        if self.balances.get(wallet, 0) < amount_msat + self.fee_msat:
            outcome = PayStatus.FAILED
        self.payments[invoice.payment_hash] = {
            "status": outcome,
            "fee": self.fee_msat,
            "wallet": wallet,
            "amount": amount_msat,
        }
        if outcome is PayStatus.SETTLED:
            self._move(wallet, amount_msat, invoice.payment_hash)
        shown = outcome is PayStatus.FAILED and PayStatus.FAILED in self.shows
        books = frozenset({self.book}) if shown else frozenset()
        return PayResult(outcome, self.fee_msat, "00" * 32, books=books)

    def _move(self, wallet: str, amount_msat: int, payment_hash: str) -> None:
        self.balances[wallet] -= amount_msat + self.fee_msat
        if payment_hash in self.invoices:
            self.settle(payment_hash)

    def finish(self, payment_hash: str, status: PayStatus) -> None:
        """A payment that hung reaches its end."""
        payment = self.payments[payment_hash]
        assert payment["status"] is PayStatus.UNKNOWN
        payment["status"] = status
        if status is PayStatus.SETTLED:
            self._move(payment["wallet"], payment["amount"], payment_hash)

    async def look_up_payment(
        self, payment_hash: str, owner: SecretKey | None, since: int
    ) -> PayResult:
        if self.silent:
            return PayResult(PayStatus.UNKNOWN)
        payment, books = self.payments.get(payment_hash), frozenset({self.book})
        if payment is None or payment["status"] not in self.shows:
            return PayResult(PayStatus.ABSENT, books=books)
        status = payment["status"]
        if status is PayStatus.UNKNOWN:
            return PayResult(PayStatus.PENDING, books=books)
        return PayResult(status, payment["fee"] if status is PayStatus.SETTLED else 0, books=books)

    async def balance(self, owner: SecretKey | None) -> int | WalletProblem:
        if self.silent:
            return WalletProblem.UNAVAILABLE
        wallet = MAIN_WALLET if owner is None else f"wallet:{owner.pubkey}"
        return self.balances.get(wallet, 0) if self.tells_balance else WalletProblem.REFUSED


@dataclass
class FakeEngine:
    """Containers that run, crash and cannot be pulled; outlives the server like Docker does."""

    clock: FakeClock
    boot_id: str = "boot-1"
    containers: dict[str, dict] = field(default_factory=dict)
    problem: CannotStart | None = None
    exits_at_once: bool = False
    started: int = 0
    ran_ms: dict[str, int] = field(default_factory=dict)
    last_seen: dict[str, int] = field(default_factory=dict)
    over: list[Ended] = field(default_factory=list)
    halted: list[tuple[str, int]] = field(default_factory=list)
    at: dict[str, str] = field(default_factory=dict)  # address -> pubkey
    fetching: dict[str, str] = field(default_factory=dict)  # pubkey -> how far its image has come
    unseen: set[str] = field(default_factory=set)  # what runs without being metered

    async def found(self) -> dict[str, Found]:
        return {
            p: Found(Live.RUNNING if c["up"] else Live.EXITED, c["generation"])
            for p, c in self.containers.items()
        }

    async def start(self, spec: ContainerSpec) -> CannotStart | None:
        if self.problem is not None:
            return self.problem
        self.started += 1
        already = self.containers.get(spec.pubkey)
        if already is not None and already["up"]:
            return None
        self.containers[spec.pubkey] = {
            "up": not self.exits_at_once, "generation": spec.generation, "tick": self.started,
            "since": self.clock.boot_ms(), "spec": spec,
        }  # fmt: skip
        return None

    async def halt(self, pubkey: str, grace_s: int) -> None:
        self.kill(pubkey)
        self.halted.append((pubkey, grace_s))

    async def remove(self, pubkey: str, *, keep_volumes: bool) -> None:
        self.kill(pubkey)
        self.containers.pop(pubkey, None)

    def kill(self, pubkey: str) -> None:
        container = self.containers.get(pubkey)
        if container is not None and container["up"]:
            container["up"] = False
            run = Run(self.boot_id, container["tick"], container["since"])
            if pubkey in self.last_seen:
                self.over.append(Ended(pubkey, run, self.last_seen.pop(pubkey)))
            self.ran_ms[pubkey] = (
                self.ran_ms.get(pubkey, 0) + self.clock.boot_ms() - container["since"]
            )

    async def logs(self, pubkey: str, lines: int) -> str:
        return "line\n" * lines

    async def exit_reason(self, pubkey: str) -> str:
        return "it does not stay up: exit code 1"

    def progress(self, pubkey: str) -> str | None:
        return self.fetching.get(pubkey)

    async def addresses(self) -> dict[str, str]:
        return dict(self.at)

    def runs(self) -> dict[str, Run]:
        alive = {
            p: Run(self.boot_id, c["tick"], c["since"])
            for p, c in self.containers.items()
            if c["up"]
        }
        self.last_seen |= dict.fromkeys(alive, self.clock.boot_ms())
        return alive

    def unmetered(self) -> frozenset[str]:
        return frozenset(self.unseen)

    def ended(self) -> list[Ended]:
        return list(self.over)

    def forget_ended(self, ended: Ended) -> None:
        self.over.remove(ended)

    def forget(self) -> None:
        """The server died: what its adapter only had in memory is gone."""
        self.over, self.last_seen = [], {}

    def total_ran_ms(self, pubkey: str) -> int:
        container = self.containers.get(pubkey)
        live = (
            self.clock.boot_ms() - container["since"]
            if container is not None and container["up"]
            else 0
        )
        return self.ran_ms.get(pubkey, 0) + live


@dataclass
class FakeRegistry:
    """Knows one image under every name."""

    compressed_bytes: int = 1_000_000
    ports: tuple[str, ...] = ("8080/tcp",)
    volumes: tuple[str, ...] = ("/data",)
    labels: dict[str, str] = field(default_factory=dict)
    problem: ImageProblem | None = None

    async def resolve(self, ref, caller=""):
        if self.problem is not None:
            return self.problem
        return ResolvedImage(
            ref, DIGEST, IMAGE_ID, self.compressed_bytes, self.labels, self.ports, self.volumes
        )


@dataclass
class FakeEvents:
    """Relays by URL, each with the events it holds; any other is silent."""

    relays: dict[str, list[Event]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def find(self, filters, relay_urls):
        self.asked += relay_urls
        held = [event for url in relay_urls for event in self.relays.get(url, [])]
        return [event for event in held if any(f.matches(event) for f in filters)]

    async def search(self, filters, relay_urls):
        silent = tuple(url for url in relay_urls if url not in self.relays)
        return Searched(tuple(await self.find(filters, relay_urls)), silent)


class Quiet:
    """No loops to wake: tests call them."""

    def reconcile(self) -> None: ...
    def announce(self) -> None: ...
    def outbox(self) -> None: ...


PRESENCE = Presence(
    name="test", about="", repo="", version="0", relay_urls=("ws://127.0.0.1:1",),
    public_url="http://127.0.0.1:2", app_host="127.0.0.1",
)  # fmt: skip


class OneByOne:
    """`handlers.ports.Tasks` that does everything at once, in order; what is begun is done."""

    async def each(self, what, keys, work):
        for key in keys:
            await work(key)

    async def begin(self, what, key, work):
        await work()


def make_context(store, wallet, engine, clock, registry=None, policy=None, key=None) -> Context:
    return Context(
        key=key or SecretKey.generate(), store=store, wallet=wallet, engine=engine,
        registry=registry or FakeRegistry(), events=FakeEvents(), clock=clock, nudge=Quiet(), tasks=OneByOne(),
        policy=policy or Policy(), presence=PRESENCE,
    )  # fmt: skip


def with_policy(ctx: Context, **changes) -> Context:
    return replace(ctx, policy=replace(ctx.policy, **changes))
