"""Tells the parent how we are, for its operator's eyes. Nothing of it is a secret, or anybody's money."""

import trio

from bot.parent.client import ParentChannel, ParentSilent
from bot.server.parts import App

EVERY_S = 5.0


async def run_reports(app: App, parent: ParentChannel) -> None:
    """Until cancelled. A parent that does not listen is told again."""
    while True:
        try:
            await parent.ask("report", **_report(app))
        except ParentSilent:
            pass
        await trio.sleep(EVERY_S)


def _report(app: App) -> dict[str, object]:
    newest = app.checkpointer.newest if app.checkpointer is not None else None
    told: dict[str, object] = {"step": "ready", "error": app.ctx.alarms.no_containers_because}
    if newest is not None:
        age_s = round(trio.current_time() - newest.at_s, 1)
        told["checkpoint"] = {
            "number": newest.number,
            "put_bytes": newest.put_bytes,
            "s_ago": age_s,
        }
    return told
