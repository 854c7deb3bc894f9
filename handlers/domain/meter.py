"""Prepaid by the second: what is due for a container now, from proof that it ran.

Time is the machine's boot time, which no wall-clock step can move. A run is named by the boot and the
start tick of the container's first process: after a crash of ours, the same name proves that it kept
running, and the gap is charged; any other name charges nothing for the gap.
"""

from dataclasses import dataclass
from enum import Enum

from handlers.domain.pricing import Tariff


@dataclass(frozen=True)
class Run:
    """A live process of a container. ``started_ms`` is in boot time."""

    boot_id: str
    start_tick: int
    started_ms: int


@dataclass(frozen=True)
class Ended:
    """A run that is over, and when it was last seen alive: up to then it is charged."""

    pubkey: str
    run: Run
    last_seen_ms: int


@dataclass(frozen=True)
class Meter:
    """How far a run has been charged; the remainder is the tariff's."""

    boot_id: str
    start_tick: int
    charged_until_ms: int
    remainder: int


@dataclass(frozen=True)
class Account:
    """What metering must know about a container."""

    units: int
    tariff: Tariff
    balance_msat: int
    meter: Meter | None
    low_noticed: bool
    charged_from_start: bool = False  # else a run that does not stay up costs nothing


@dataclass(frozen=True)
class Rhythm:
    """How often charges are written, how early a low balance is told, when a run counts as standing."""

    tick_ms: int = 1_000
    charge_every_ms: int = 60_000
    low_balance_ms: int = 600_000
    stays_up_ms: int = 3_000
    # A run of that length makes the crashes before it be forgotten.
    steady_ms: int = 60_000


class Next(Enum):
    """What else must happen with the charge."""

    GO_ON = "go on"
    WARN = "warn that the balance is low"
    PAUSE = "pause: the next tick is not paid for"


@dataclass(frozen=True)
class Due:
    """A charge to write: from ``from_ms`` on, ``amount_msat``, leaving ``meter``."""

    from_ms: int
    amount_msat: int
    meter: Meter
    then: Next


def due(account: Account, run: Run, now_ms: int, rhythm: Rhythm) -> Due | None:
    """What to charge now, or None when nothing needs to be written yet.

    A run that has not stayed up for ``stays_up_ms`` costs nothing (yet), unless it is charged from its start:
    an image that never works is never charged. Afterwards it is charged from its start. When the balance cannot cover what ran
    (we were late), it is charged as far as it reaches: below zero is our loss.
    """
    young = now_ms - run.started_ms < rhythm.stays_up_ms
    if (young and not account.charged_from_start) or _is_past(account.meter, run):
        return None
    from_ms, remainder = _position(account.meter, run)
    affordable_ms = account.tariff.affordable_ms(account.units, account.balance_msat, remainder)
    elapsed_ms = max(0, min(now_ms - from_ms, affordable_ms))
    amount_msat, left = account.tariff.cost(account.units, elapsed_ms, remainder)
    then = _next(account, now_ms - from_ms, affordable_ms, rhythm)
    if (
        then is Next.GO_ON
        and now_ms - from_ms < rhythm.charge_every_ms
        and _follows(account.meter, run)
    ):
        return None
    meter = Meter(run.boot_id, run.start_tick, max(from_ms, now_ms), left)
    return Due(from_ms, amount_msat, meter, then)


def look_again_ms(account: Account, run: Run, rhythm: Rhythm) -> int:
    """The boot time before which `due` has nothing to say of this run, whatever the clock shows."""
    from_ms, remainder = _position(account.meter, run)
    proven_ms = run.started_ms + rhythm.stays_up_ms
    if not _follows(account.meter, run):
        return run.started_ms if account.charged_from_start else proven_ms
    end_ms = from_ms + account.tariff.affordable_ms(account.units, account.balance_msat, remainder)
    moments = [from_ms + rhythm.charge_every_ms, end_ms - rhythm.tick_ms]
    if not account.low_noticed:
        moments.append(end_ms - rhythm.low_balance_ms)
    if from_ms < proven_ms:
        moments.append(proven_ms)
    return min(moments)


def _position(meter: Meter | None, run: Run) -> tuple[int, int]:
    if meter is None:
        return run.started_ms, 0
    if not _follows(meter, run):
        # Within one boot no moment is charged twice, whatever the runs are called.
        charged_ms = meter.charged_until_ms if meter.boot_id == run.boot_id else 0
        return max(run.started_ms, charged_ms), meter.remainder
    return meter.charged_until_ms, meter.remainder


def _is_past(meter: Meter | None, run: Run) -> bool:
    # A later run is being charged already: this one's time was counted, or is lost to us.
    return meter is not None and meter.boot_id == run.boot_id and meter.start_tick > run.start_tick


def _follows(meter: Meter | None, run: Run) -> bool:
    return meter is not None and (meter.boot_id, meter.start_tick) == (run.boot_id, run.start_tick)


def _next(account: Account, elapsed_ms: int, affordable_ms: int, rhythm: Rhythm) -> Next:
    left_ms = affordable_ms - elapsed_ms
    if left_ms < rhythm.tick_ms:
        return Next.PAUSE
    if left_ms < rhythm.low_balance_ms and not account.low_noticed:
        return Next.WARN
    return Next.GO_ON
