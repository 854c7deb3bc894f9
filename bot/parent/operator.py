"""What the operator asks his parent, on a socket that only he can open: status, logs, backups, rotate, shutdown."""

import time
from collections.abc import Mapping

import trio

from bot.parent.server import ParentServer
from bot.parent.store import BlobStore, Remote
from bot.parent.wire import ROTATE, SHUTDOWN
from netstack import vsock
from netstack.control import Refused, serve

MOST_LINES = 1_000


class Operator:
    """Serves `netstack.control`'s lines."""

    def __init__(self, server: ParentServer, store: BlobStore, remote: Remote | None) -> None:
        self._server, self._store, self._remote = server, store, remote

    async def serve(self, address: vsock.Address) -> None:
        """Until cancelled."""
        handlers = {
            "status": self._status,
            "logs": self._logs,
            "backups": self._backups,
            "shutdown": self._shutdown,
            "rotate": self._rotate,
        }
        await serve(await vsock.listen(address), handlers)

    async def _status(self, params: Mapping[str, object]) -> object:
        told, now = self._server.told, time.time()  # noqa: TID251 - the host's own clock, for its operator
        reported_at = told.reported_at
        return {
            "enclave": "up" if self._server.listeners else "not connected",
            "reported_s_ago": None if reported_at is None else round(now - reported_at, 1),
            "report": told.report,
            "backups": await self._backups({}),
            "last_log": told.lines[-1] if told.lines else None,
        }

    async def _logs(self, params: Mapping[str, object]) -> object:
        lines = params.get("lines", 100)
        if type(lines) is not int or not 0 < lines <= MOST_LINES:
            raise Refused(f"lines is 1 to {MOST_LINES}")
        return list(self._server.told.lines)[-lines:]

    async def _backups(self, params: Mapping[str, object]) -> object:
        kept, now = await trio.to_thread.run_sync(self._store.kept), time.time()  # noqa: TID251 - as above
        return {
            "blobs": kept.blobs,
            "bytes": kept.bytes,
            "newest_s_ago": None if kept.newest_at is None else round(now - kept.newest_at, 1),
            "remote_problem": None if self._remote is None else self._remote.problem,
            "remote_lag_s": None if self._remote is None else round(self._remote.lag_s, 1),
        }

    async def _shutdown(self, params: Mapping[str, object]) -> object:
        return self._tell(SHUTDOWN)

    async def _rotate(self, params: Mapping[str, object]) -> object:
        return self._tell(ROTATE)

    def _tell(self, event: str) -> str:
        told = self._server.tell(event)
        if not told:
            raise Refused("no enclave listens: there is nobody to tell")
        return f"told {told}"
