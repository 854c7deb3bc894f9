"""How often the wallet is asked about something open: quick at first, then patient."""

from dataclasses import replace
from typing import Protocol, TypeVar

from handlers.records import InvoiceRecord, Outgoing

Row = TypeVar("Row", InvoiceRecord, Outgoing)

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


class Waiting(Protocol[Row]):
    """A table of what the wallet is asked about: invoices, outgoing payments."""

    def list_due(self, now: int, limit: int) -> list[Row]:
        """Those whose next look has come."""
        ...

    def save(self, row: Row, /) -> None:
        """Write one back."""
        ...


def claim(table: Waiting[Row], now: int) -> list[Row]:
    """What is due, a batch at most. Each is put off at once, so that one that fails cannot block others."""
    due = table.list_due(now, BATCH)
    for row in due:
        table.save(replace(row, next_look_at=now + next_look_s(now - row.created_at)))
    return due
