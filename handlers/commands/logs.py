"""``logs``: the last lines that a container wrote, for its admin."""

from dataclasses import dataclass
from typing import Any

from handlers.context import Caller, Context
from handlers.errors import Refusal
from handlers.owned import owned
from handlers.params import PUBKEY, integer, param

# A NIP-44 message holds 65,535 bytes, and an event of 64 KiB only 40,897 of plain text.
MAX_LOG_BYTES = 32_000


@dataclass(frozen=True)
class LogsParams:
    """Which container, and how many lines."""

    pubkey: str = param(PUBKEY)
    lines: int = param(integer(1, 1_000), 100)


async def logs(ctx: Context, caller: Caller, params: LogsParams) -> dict[str, Any] | Refusal:
    """The newest lines, cut at the front so that they fit into one message."""
    row = await ctx.store.read(owned, caller, params.pubkey)
    if isinstance(row, Refusal):
        return row
    text = await ctx.engine.logs(params.pubkey, params.lines)
    kept = text.encode()[-MAX_LOG_BYTES:].decode(errors="ignore")
    return {"pubkey": params.pubkey, "logs": kept, "truncated": len(kept) < len(text)}
