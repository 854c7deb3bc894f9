"""What to hold back for the routing of a payment: the worst that the wallet may charge.

NIP-47 has no way to set a limit, and who owns the last hop of a route keeps what it costs: what a payment was seen to
cost beyond the configured reserve could be taken from us again and again. So the reserve learns from it; what a
payment does not use of it goes back at once.

Small payments and large ones teach different things. Of a small one a route may keep many times the amount: as a share
that would bar everybody from his money, as a sum it is little.
"""

from dataclasses import dataclass

MILLION = 1_000_000
SMALL_MSAT = 1_000_000


@dataclass(frozen=True)
class WorstFees:
    """The most that was seen: ``small_msat`` for an amount below `SMALL_MSAT`, ``large_ppm`` of a larger one beyond
    the floor; 0 for none."""

    small_msat: int = 0
    large_ppm: int = 0


@dataclass(frozen=True)
class FeeReserve:
    """A share of the amount, plus a floor."""

    ppm: int
    floor_msat: int

    def of(self, amount_msat: int) -> int:
        """What to hold back beside the amount, in msat."""
        return self.floor_msat + -(-amount_msat * self.ppm // MILLION)

    def most_payable_msat(self, balance_msat: int) -> int:
        """The largest amount whose reserve the balance still covers."""
        return max(0, balance_msat - self.floor_msat) * MILLION // (MILLION + self.ppm)

    def having_seen(self, worst: WorstFees) -> "FeeReserve":
        """This reserve, or more, after payments that cost as much."""
        return FeeReserve(max(self.ppm, worst.large_ppm), max(self.floor_msat, worst.small_msat))
