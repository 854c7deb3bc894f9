"""What to hold back for the routing of a payment: the worst that the wallet may charge.

NIP-47 has no way to set a limit, and who owns the last hop of a route keeps what it costs: what a payment was seen to
cost beyond the configured reserve could be taken from us again and again. So the reserve learns from it; what a
payment does not use of it goes back at once.
"""

from dataclasses import dataclass

MILLION = 1_000_000


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

    def having_seen(self, worst_ppm: int) -> "FeeReserve":
        """This reserve, or more, after a payment cost ``worst_ppm`` of its amount beyond the floor."""
        return FeeReserve(max(self.ppm, worst_ppm), self.floor_msat)
