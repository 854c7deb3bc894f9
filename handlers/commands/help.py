"""``help``: the commands, told from the table itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.context import Caller, Context
from handlers.errors import Refusal, not_found
from handlers.params import COMMAND, param
from handlers.routes import Handler, Route


@dataclass(frozen=True)
class HelpParams:
    """One command, or all of them."""

    command: str | None = param(COMMAND, None)


def help_for(table: Callable[[], Sequence[Route]]) -> Handler:
    """The handler of ``help`` for a table that it is itself a row of."""

    async def help_command(
        ctx: Context, caller: Caller, params: HelpParams
    ) -> dict[str, Any] | Refusal:
        if params.command is None:
            return {"commands": [{"usage": r.usage, "summary": r.summary} for r in table()]}
        for route in table():
            if params.command in (route.method, *route.aliases):
                return {"commands": [_in_full(route)]}
        return not_found("there is no such command; say help")

    return help_command


def _in_full(route: Route) -> dict[str, Any]:
    parameters = [
        {"name": name, "required": required, "must_be": says}
        for name, required, says in route.parameter_help()
    ]
    return {
        "usage": route.usage,
        "summary": route.summary,
        "parameters": parameters,
        "returns": route.returns,
    }


def tell_help(result: dict[str, Any]) -> str:
    """One line per command."""
    return "\n".join(f"{c['usage']}: {c['summary']}" for c in result["commands"])
