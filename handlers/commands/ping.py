"""``ping``: is anybody there?"""

from dataclasses import dataclass

from handlers.context import Caller, Context


@dataclass(frozen=True)
class PingParams:
    """Nothing."""


async def ping(ctx: Context, caller: Caller, params: PingParams) -> str:
    """Always ``pong``."""
    return "pong"
