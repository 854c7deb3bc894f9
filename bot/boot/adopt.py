"""Programs that run already, though we did not start them: an earlier ``enclaved boot`` did, and died.

Nothing is remembered in files: the kernel says who listens at a Unix socket, and a pidfd says when he ends.
"""

import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

import trio

_CONNECT_S = 1.0
# struct ucred
_CREDENTIALS = struct.Struct("=iII")


@dataclass(frozen=True)
class Adopted:
    """As much of `trio.Process` as a supervisor needs; a stranger's exit code is nobody's to read."""

    pid: int
    _pidfd: int

    async def wait(self) -> None:
        """Until it ended."""
        await trio.lowlevel.wait_readable(self._pidfd)

    def close(self) -> None:
        os.close(self._pidfd)


def adopt(path: Path) -> Adopted | None:
    """Whoever listens at the socket now; None when nobody does. Blocks for a moment."""
    pid = listener_at(path)
    if not pid:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # It may have ended, and its number been given away, between the two calls.
    if listener_at(path) != pid:
        os.close(pidfd)
        return None
    return Adopted(pid, pidfd)


def listener_at(path: Path) -> int | None:
    """The pid of who called listen(2), as this process's namespace numbers it; 0 for one outside of it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_CONNECT_S)
        try:
            sock.connect(str(path))
        except OSError:
            return None
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid: int = _CREDENTIALS.unpack(raw)[0]
        return pid
