"""Double entry in msat: every entry moves money between accounts and sums to zero.

Accounts, by who could ask for the money (a positive balance is owed to that account):

- ``container:<pubkey>``   the tenant's prepaid balance. Never below zero.
- ``outgoing:<id>``        held for one payment that is on its way. Never below zero.
- ``revenue``              ours.
- ``wallet:<id>``          the Lightning wallet, as the other side of the book: its balance here is
  minus what the wallet holds.

An entry has an idempotency key; the store refuses a second one, so a replay changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

MAIN_WALLET = "wallet:main"
REVENUE = "revenue"


def container_account(pubkey: str) -> str:
    """The tenant's prepaid balance."""
    return f"container:{pubkey}"


def outgoing_account(payment_id: str) -> str:
    """What is held for one outgoing payment."""
    return f"outgoing:{payment_id}"


@dataclass(frozen=True)
class Entry:
    """One movement. ``postings`` maps an account to the msat it gains (or, negative, loses)."""

    key: str
    postings: Mapping[str, int]

    def __post_init__(self) -> None:
        if sum(self.postings.values()) != 0:
            raise ValueError(f"entry {self.key} does not sum to zero")
        if not self.key:
            raise ValueError("an entry needs an idempotency key")


def payment(payment_hash: str, container: str, wallet: str, amount_msat: int) -> Entry:
    """A settled invoice: the tenant's balance rises by what the wallet received."""
    return _entry(
        f"payment:{payment_hash}",
        {container_account(container): amount_msat, wallet: -amount_msat},
    )


def charge(container: str, boot_id: str, start_tick: int, from_ms: int, amount_msat: int) -> Entry:
    """Time that was run. The key names the period by its beginning: no period is charged twice."""
    key = f"charge:{container}:{boot_id}:{start_tick}:{from_ms}"
    return _entry(key, {container_account(container): -amount_msat, REVENUE: amount_msat})


def reserve_outgoing(
    payment_id: str, source: str, amount_msat: int, fee_reserve_msat: int
) -> Entry:
    """Before paying: take the amount and the most that fees may cost out of ``source``."""
    held = amount_msat + fee_reserve_msat
    return _entry(f"reserve:{payment_id}", {source: -held, outgoing_account(payment_id): held})


def complete_outgoing(
    payment_id: str,
    source: str,
    wallet: str,
    amount_msat: int,
    fee_reserve_msat: int,
    fees_paid_msat: int,
    source_balance_msat: int,
) -> Entry:
    """The wallet paid. Unused reserve goes back.

    Fees beyond the reserve come out of the source as far as it reaches: the tenant chose the route,
    and could own its last hop. Only what is left of them is our loss.
    """
    held = amount_msat + fee_reserve_msat
    fee_charged = min(fees_paid_msat, fee_reserve_msat + source_balance_msat)
    return _entry(
        f"outgoing:{payment_id}",
        {
            outgoing_account(payment_id): -held,
            source: fee_reserve_msat - fee_charged,
            wallet: amount_msat + fees_paid_msat,
            REVENUE: fee_charged - fees_paid_msat,
        },
    )


def release_outgoing(
    payment_id: str, source: str, amount_msat: int, fee_reserve_msat: int
) -> Entry:
    """The payment certainly failed: everything goes back. Shares its key with `complete_outgoing`."""
    held = amount_msat + fee_reserve_msat
    return _entry(f"outgoing:{payment_id}", {outgoing_account(payment_id): -held, source: held})


def settled_after_all(
    payment_id: str, source: str, wallet: str, paid_msat: int, source_balance_msat: int
) -> Entry:
    """A payment that was given back as failed was made after all. What the source no longer has is our loss."""
    from_source = min(paid_msat, source_balance_msat)
    return _entry(
        f"after-all:{payment_id}",
        {source: -from_source, REVENUE: from_source - paid_msat, wallet: paid_msat},
    )


def transfer(
    payment_id: str, from_wallet: str, to_wallet: str, amount_msat: int, fees_msat: int
) -> Entry:
    """Money that moved between two wallets of ours (a sweep of earned revenue); its fees are ours."""
    return _entry(
        f"transfer:{payment_id}",
        {from_wallet: amount_msat + fees_msat, to_wallet: -amount_msat, REVENUE: -fees_msat},
    )


def _entry(key: str, postings: dict[str, int]) -> Entry:
    # Zero lines carry nothing; an entry whose lines are all zero is still a fact (a free period).
    return Entry(key, {account: amount for account, amount in postings.items() if amount != 0})
