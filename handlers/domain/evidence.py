"""When an outgoing payment has failed although its wallet does not say so: only then may it be given back.

Absence of a word proves nothing. Wallets lose requests, forget payments, or never list outgoing ones at all;
and an HTLC that somebody holds can settle long after the invoice has expired. So a book in which a payment
is missing counts only if that same book shows another outgoing payment of ours now.
"""

from dataclasses import dataclass
from enum import Enum

# After the last moment at which the wallet may take up the request: for slow relays and clocks.
MARGIN_S = 60


class Book(Enum):
    """Where a wallet tells of outgoing payments (NIP-47's methods)."""

    LOOKUP = "lookup_invoice"
    LIST = "list_transactions"


@dataclass(frozen=True)
class Witnesses:
    """Books that show another outgoing payment of ours now. ``unsettled``: one that was seen there on its way, so
    that such a book shows more than what came to an end."""

    settled: frozenset[Book] = frozenset()
    unsettled: frozenset[Book] = frozenset()


def is_over(valid_until: int, now: int) -> bool:
    """Whether the wallet must ignore the request from now on, if it has not seen it."""
    return now > valid_until + MARGIN_S


def has_failed(
    absent_from: frozenset[Book], witnesses: Witnesses, valid_until: int, now: int, htlc_s: int
) -> bool:
    """Whether a payment that is ``absent_from`` these books can never be paid any more.

    ``htlc_s``: how long a route may hold a payment. A book that was not seen to show what is on its way may
    leave it out meanwhile, so it is waited for.
    """
    if not is_over(valid_until, now):
        return False
    if absent_from & witnesses.unsettled:
        return True
    return bool(absent_from & witnesses.settled) and now > valid_until + htlc_s
