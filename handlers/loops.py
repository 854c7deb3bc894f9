"""What the server does by itself, as values: the server, the tests' world and the crash harness all run this list."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from handlers.context import Context, Policy
from handlers.duties.announce import announce_containers
from handlers.duties.builtins import keep_builtins
from handlers.duties.charge import tick
from handlers.duties.incoming import look_up_invoices, look_up_wallets
from handlers.duties.outgoing import look_up_payments
from handlers.duties.reconcile import reconcile
from handlers.duties.solvency import Solvency
from handlers.duties.sweep import sweep
from handlers.duties.upkeep import Upkeep, archive


@dataclass(frozen=True)
class Loop:
    """``once`` is done every ``every_s`` seconds, or when the nudge called ``nudge`` comes, and then not again for
    ``rest_s``: so that what comes together is done together."""

    name: str
    once: Callable[[Context], Awaitable[None]]
    every_s: float
    nudge: str | None = None
    rest_s: float = 0


def duties(policy: Policy) -> tuple[Loop, ...]:
    """All of them, in the order in which one turn of everything does them."""
    return (
        Loop("invoices", look_up_invoices, 1),
        Loop("payments", look_up_payments, 1),
        Loop("wallets", look_up_wallets, 300),
        Loop("meter", tick, policy.rhythm.tick_ms / 1_000),
        Loop("upkeep", Upkeep().once, 5),
        Loop("sweep", sweep, 10),
        Loop("built-ins", keep_builtins, 5),
        Loop("reconcile", reconcile, 5, nudge="reconcile"),
        Loop("announce", announce_containers, 30, nudge="announce", rest_s=0.5),
        Loop("solvency", Solvency().check, 60),
        Loop("archive", archive, 60),
    )
