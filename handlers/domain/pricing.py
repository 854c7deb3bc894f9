"""What a unit costs. Whole millisatoshi are charged; the remainder is carried, never rounded away."""

from dataclasses import dataclass

MSAT_PER_SAT = 1_000


@dataclass(frozen=True)
class Tariff:
    """``price_msat`` for one unit during ``interval_s``. The default is 5 sat per unit and hour."""

    price_msat: int = 5_000
    interval_s: int = 3_600

    def __post_init__(self) -> None:
        if self.price_msat < 1 or self.interval_s < 1:
            raise ValueError("a tariff has a price and an interval of at least 1")

    def cost(self, units: int, elapsed_ms: int, remainder: int) -> tuple[int, int]:
        """``(whole msat, new remainder)`` for running ``elapsed_ms``.

        The remainder is in units of ``1 / (interval_s * 1000)`` msat, so any split of a period into
        shorter ones costs exactly the same in total.
        """
        return divmod(units * self.price_msat * elapsed_ms + remainder, self._denominator)

    def affordable_ms(self, units: int, balance_msat: int, remainder: int) -> int:
        """The longest time whose `cost` does not exceed the balance."""
        numerator = (balance_msat + 1) * self._denominator - 1 - remainder
        return max(0, numerator // (units * self.price_msat))

    def interval_msat(self, units: int) -> int:
        """The price of one interval, in whole sat: what the first invoice asks for at least."""
        return sat_ceil(units * self.price_msat) * MSAT_PER_SAT

    @property
    def _denominator(self) -> int:
        return self.interval_s * 1_000


def sat_ceil(msat: int) -> int:
    """Whole sat, rounded up: for invoices (wallets take whole sat)."""
    return -(-msat // MSAT_PER_SAT)


def sat_floor(msat: int) -> int:
    """Whole sat, rounded down: for what may be paid out or shown."""
    return msat // MSAT_PER_SAT
