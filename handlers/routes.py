"""What a command is: its name, parameters, handler, and how its result reads as text."""

from collections.abc import Awaitable, Callable
from dataclasses import Field, dataclass, fields
from typing import Any

from handlers.context import Caller, Context
from handlers.domain.lane import WaitsFor
from handlers.params import check_of, is_required

# JSON-ready: what travels as `result`.
Result = Any
Handler = Callable[[Context, Caller, Any], Awaitable[Result]]


@dataclass(frozen=True)
class Route:
    """One row of the table in ``handlers/__init__.py``.

    ``tell`` turns a result into the words of a public reply; without it the command may not be called where
    everybody can read along. ``waits_for``: who must answer before it can.
    """

    method: str
    params: type
    handler: Handler
    summary: str
    returns: str
    tell: Callable[[Result], str] | None = None
    waits_for: WaitsFor | None = None
    admin_only: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def public(self) -> bool:
        """Whether it may be called in public."""
        return self.tell is not None

    @property
    def usage(self) -> str:
        """``deploy docker units [name] [env]``."""
        names = (f.name if is_required(f) else f"[{f.name}]" for f in fields(self.params))
        return " ".join([self.method, *names])

    def parameter_help(self) -> list[tuple[str, bool, str]]:
        """``(name, required, what it must be)`` for each parameter."""
        items: tuple[Field[Any], ...] = fields(self.params)
        return [(item.name, is_required(item), check_of(item).says) for item in items]
