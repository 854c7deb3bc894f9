"""What a wallet's transaction says, read with distrust: NIP-47's shape, from many wallets. Pure.

"Settled" must not contradict the preimage; amounts and fees are bounded. Whatever contradicts itself is UNKNOWN.
"""

from collections.abc import Mapping

from handlers.domain.evidence import Book
from handlers.ports import Incoming, IncomingState, PayResult, PayStatus
from nips.bolt11 import preimage_matches

MAX_AMOUNT_MSAT = 2**60
# Fees are added up in 64 bits, and no payment costs a bitcoin.
MAX_FEES_MSAT = 10**11


def incoming_of(transaction: Mapping[str, object]) -> Incoming:
    """An invoice of ours, as the wallet has it."""
    payment_hash, amount = str(transaction.get("payment_hash")), transaction.get("amount")
    if not is_settled(transaction):
        return Incoming(payment_hash, IncomingState.NOT_YET)
    if (
        _contradicts(transaction)
        or transaction.get("type", "incoming") != "incoming"
        or type(amount) is not int
        or not 0 < amount < MAX_AMOUNT_MSAT
    ):
        return Incoming(payment_hash, IncomingState.UNKNOWN)
    settled_at = transaction.get("settled_at")
    return Incoming(
        payment_hash,
        IncomingState.SETTLED,
        amount_msat=amount,
        preimage=preimage_of(transaction),
        settled_at=settled_at if type(settled_at) is int and 0 < settled_at < 2**32 else 0,
        bolt11=str(transaction.get("invoice") or ""),
    )


def payment_of(transaction: Mapping[str, object], book: Book | None) -> PayResult:
    """A payment of ours, as the wallet has it in ``book`` (None: it said so by itself)."""
    books = frozenset({book}) if book is not None else frozenset()
    if is_settled(transaction):
        if _contradicts(transaction):
            return PayResult(PayStatus.UNKNOWN)
        # A payment between two accounts of one wallet (nwc-enclaved) is listed as its payee's: incoming. No
        # invoice of ours can be paid by us, so who settled this one was we, or somebody in our stead.
        return PayResult(
            PayStatus.SETTLED, fees_of(transaction), preimage_of(transaction), books=books
        )
    if transaction.get("type") == "incoming":
        return PayResult(PayStatus.UNKNOWN)
    if transaction.get("state") == "failed":
        return PayResult(PayStatus.FAILED, reason="the wallet says that it failed", books=books)
    return PayResult(PayStatus.PENDING, books=books)


def is_settled(transaction: Mapping[str, object]) -> bool:
    """Older wallets tell no state: a time of settlement is their way of saying it."""
    state = transaction.get("state")
    return state == "settled" if isinstance(state, str) else bool(transaction.get("settled_at"))


def preimage_of(transaction: Mapping[str, object]) -> str | None:
    """None also for nwc-enclaved's "-", which stands for payments between its own accounts."""
    preimage = transaction.get("preimage")
    return preimage if isinstance(preimage, str) and len(preimage) == 64 else None


def fees_of(transaction: Mapping[str, object]) -> int:
    """In msat; 0 for what cannot be read."""
    fees = transaction.get("fees_paid")
    return fees if type(fees) is int and 0 <= fees <= MAX_FEES_MSAT else 0


def _contradicts(transaction: Mapping[str, object]) -> bool:
    preimage = preimage_of(transaction)
    return preimage is not None and not preimage_matches(
        preimage, str(transaction.get("payment_hash"))
    )
