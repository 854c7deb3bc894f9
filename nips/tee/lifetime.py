"""When evidence holds: from a little before it says, by clocks that differ, to its end and not a second longer.

Beginnings are tolerant. What lies ahead of our clock by less than `CLOCK_SKEW_S` was made by a clock that runs
ahead of ours; nobody gains by evidence that is believed a little early, for it exists. Ends are strict: whoever
shows evidence after its end wants to be believed for longer than was vouched for, and whoever vouches renews it
long before. A clock that is wrong beyond that ends in a refusal that names both times.
"""

from datetime import UTC, datetime

from nips.errors import BadInput

CLOCK_SKEW_S = 300


def check_begun(what: str, begins: int, now: int, error: type[BadInput]) -> None:
    """Raise ``error`` when ``what`` begins further ahead of ``now`` than clocks may differ (Unix seconds)."""
    if begins > now + CLOCK_SKEW_S:
        raise error(
            f"{what} is not valid yet, or from the future: your clock says {told(now)}, "
            f"{what} says {told(begins)}; is your clock right?"
        )


def check_not_over(what: str, ends: int, now: int, error: type[BadInput]) -> None:
    """Raise ``error`` when ``what`` ended before ``now``; its last second is still good."""
    if now > ends:
        raise error(f"{what} has expired: your clock says {told(now)}, its end was {told(ends)}")


def told(at: int) -> str:
    """A time in words; a liar's may be in no calendar."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{at} (Unix seconds)"
