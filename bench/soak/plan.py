"""How long a soak takes, how often it kills and looks, and the policy of the server that it is for."""

from dataclasses import dataclass
from typing import Any

PRICE_MSAT, INTERVAL_S = 1_000, 1


@dataclass(frozen=True)
class Plan:
    """``withdrawal_s``: how long tenants' own invoices live. ``quiet_s``: how long to wait for what is open at the end."""

    seed: int
    load_s: float = 900
    kill_every_s: float = 60
    wallet_kill_every: int = 3
    sample_every_s: float = 10
    tenants: int = 6
    pause_s: float = 0.8
    withdrawal_s: int = 20
    quiet_s: float = 240
    invoice_valid_s: int = 60

    def policy(self) -> dict[str, Any]:
        """A sat buys a second, and everything that waits waits for seconds: a day in minutes."""
        return {
            "resume_ms": 2_000,
            "pay_valid_s": 5,
            "htlc_s": 1,  # the dev wallet holds no payments
            "fee_reserve_min_msat": 2_000,
            "sweep_msat": 20_000,
            "invoice_valid_s": self.invoice_valid_s,
            "unpaid_kept_s": 30,
            "grace_s": 40,
            "retention_s": 120,
            "archive_after_s": 60,
            "announce_every_s": 60,
            "restart_every_s": 5,
            "restart_grace_s": 3,
            "pause_grace_s": 2,
            "tariff": {"price_msat": PRICE_MSAT, "interval_s": INTERVAL_S},
            "rhythm": {"charge_every_ms": 2_000, "low_balance_ms": 3_000, "stays_up_ms": 1_000},
        }


# So small that floods reach the bounds within minutes.
RELAY_LIMITS = {
    "max_stored_events": 5_000,
    "max_stored_bytes": 16 << 20,
    "max_own_bytes": 24 << 20,
}


def short(seed: int) -> Plan:
    """For a test: two kills, and an end that waits for no invoice of a minute."""
    return Plan(
        seed,
        load_s=30,
        kill_every_s=11,
        wallet_kill_every=2,
        sample_every_s=2,
        tenants=4,
        withdrawal_s=4,
        quiet_s=120,
        invoice_valid_s=10,
    )
