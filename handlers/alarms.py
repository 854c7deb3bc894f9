"""What is wrong with this instance now: told to whoever wants to entrust something to it, and logged when it changes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum


class Alarm(Enum):
    """Each closes the door to new containers; those in `STOPS_MONEY` to any new invoice as well."""

    ESCROW = "our key is not safe in escrow"
    METER = "what runs here cannot be metered"
    SOLVENCY = "the wallet holds less than is owed"
    WALLET = "our own wallet has another key than before: what lay under the former one is not to be had"
    BUILTIN = "a container of the instance itself cannot be had"


STOPS_MONEY = frozenset({Alarm.SOLVENCY, Alarm.WALLET})


@dataclass
class Alarms:
    """``changed`` is called with an alarm, and the reason that was found or None when it is over."""

    changed: Callable[[Alarm, str | None], None] = lambda alarm, reason: None
    raised: dict[Alarm, str] = field(default_factory=dict)

    def set(self, alarm: Alarm, reason: str | None) -> None:
        """Raise it, or (None) end it. Saying it again changes nothing."""
        if self.raised.get(alarm) == reason:
            return
        if reason is None:
            del self.raised[alarm]
        else:
            self.raised[alarm] = reason
        self.changed(alarm, reason)

    @property
    def no_containers_because(self) -> str | None:
        """Why nothing new is deployed here, in words for strangers."""
        return next((alarm.value for alarm in Alarm if alarm in self.raised), None)

    @property
    def no_invoices_because(self) -> str | None:
        """Why no money is taken."""
        return next((alarm.value for alarm in STOPS_MONEY if alarm in self.raised), None)
