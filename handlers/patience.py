"""How often the wallet is asked about something open: quick at first, then patient."""

# (age in seconds, seconds until the next look)
_STEPS = ((60, 2), (600, 10), (3_600, 60))
LONGEST_WAIT_S = 600
# The wallet's clock and ours may differ by so much: an invoice that expired so long ago cannot be paid any more.
CLOCKS_DIFFER_S = 60
# So many are asked about in one turn.
BATCH = 50


def next_look_s(age_s: int) -> int:
    """Seconds until the next look at something of that age. A clock that was ahead makes nothing old."""
    return next((wait_s for limit_s, wait_s in _STEPS if age_s < limit_s), LONGEST_WAIT_S)
