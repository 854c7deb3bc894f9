"""Programs that run already, though we did not start them: an earlier ``enclaved boot`` did, and died.

A program notes its own number beside its log before it begins, with the moment when the kernel says that it was started: a
number that was given to another process meanwhile does not match. Where it listens, or whether it listens yet, says
nothing. Nobody else must live until it is noted, and one that cannot note itself does not begin.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from bot.clock import boot_id
from bot.files import read_bounded

log = structlog.get_logger()
_MOST_BYTES = 200
# proc(5): fields of /proc/pid/stat after the name, which is in parentheses and may hold anything.
_STATE, _STARTTIME = 0, 19
_NOTE = f"""set -eu
note() {{
    shift {_STARTTIME}
    printf '%s %s %s' "$$" "$1" "$boot" >"$path.new"
}}
path=$0
read -r boot </proc/sys/kernel/random/boot_id
read -r stat <"/proc/$$/stat"
note ${{stat##*) }}
mv -f -- "$path.new" "$path"
exec "$@"
"""


@dataclass(frozen=True)
class Adopted:
    """As much of `trio.Process` as a supervisor needs; a stranger's exit code is nobody's to read."""

    pid: int
    _pidfd: int

    async def wait(self) -> None:
        """Until it ended. Any number of tasks may wait, which is why each does so at a descriptor of its own."""
        mine = os.dup(self._pidfd)
        try:
            await trio.lowlevel.wait_readable(mine)
        finally:
            os.close(mine)

    def close(self) -> None:
        os.close(self._pidfd)


def noting(path: Path, command: Sequence[str]) -> list[str]:
    """The command, by a shell that notes itself there and then becomes it."""
    return ["/bin/sh", "-c", _NOTE, str(path), *command]


def adopt(path: Path) -> Adopted | None:
    """Whoever was noted there, if he runs."""
    try:
        pid, began, boot = read_bounded(path, _MOST_BYTES).decode().split()
        if boot != boot_id():
            return None
        pidfd = os.pidfd_open(int(pid))
    except (FileNotFoundError, ProcessLookupError):
        return None
    except (OSError, ValueError) as error:
        log.warning("who was started before cannot be read", path=str(path), why=str(error))
        return None
    # Only now: what has this number and began then is what the descriptor means.
    if _began(int(pid)) == began:
        return Adopted(int(pid), pidfd)
    os.close(pidfd)
    return None


def _began(pid: int) -> str | None:
    """In clock ticks since the machine started; None for one that has ended, or is not there."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[_STATE] in "ZX" else fields[_STARTTIME]
