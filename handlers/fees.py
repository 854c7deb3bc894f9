"""What payments must hold back now: as configured, or as the worst that was seen lately."""

from handlers.context import Facts
from handlers.domain.fees import FeeReserve
from handlers.domain.pricing import MSAT_PER_SAT, sat_floor
from handlers.tables import Tx


def fee_reserve(tx: Tx, facts: Facts) -> FeeReserve:
    """The reserve for the next payment."""
    policy = facts.policy
    worst = tx.outgoing.worst_fees(
        policy.fee_reserve_min_msat, facts.now - policy.fees_remembered_s
    )
    return policy.fee_reserve.having_seen(worst)


def most_withdrawable_msat(reserve: FeeReserve, balance_msat: int) -> int:
    """The largest whole-sat amount whose reserve the balance still covers."""
    return sat_floor(reserve.most_payable_msat(balance_msat)) * MSAT_PER_SAT
