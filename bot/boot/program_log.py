"""What a program says, in one file that is bounded: it is kept in memory where there is no disk."""

import os
from pathlib import Path

import structlog
import trio

log = structlog.get_logger()
# Of more than this the older half goes.
MOST_LOG_BYTES = 8 << 20
LOOK_AT_LOG_S = 10.0
_LAST_WORDS = 1_500


async def bound_log(path: Path) -> None:
    """For ever. A file that cannot be shortened is told once: words may be lost, the program is not."""
    told = False
    while True:
        try:
            await trio.to_thread.run_sync(keep_newest, path, MOST_LOG_BYTES)
        except OSError as error:
            if not told:
                log.warning("a log cannot be bounded", path=str(path), reason=str(error))
            told = True
        await trio.sleep(LOOK_AT_LOG_S)


def last_words(path: Path) -> str:
    """The end of it, or why it cannot be read."""
    try:
        return path.read_text(errors="replace")[-_LAST_WORDS:]
    except OSError as error:
        return f"its log cannot be read: {error}"


def keep_newest(path: Path, most_bytes: int) -> None:
    """Shorten a file of lines that others append to; what they write at this very moment may be lost."""
    with path.open("r+b") as file:
        if (size := file.seek(0, os.SEEK_END)) <= most_bytes:
            return
        file.seek(size - most_bytes // 2)
        file.readline()
        newest = file.read()
        file.truncate(0)
    with path.open("ab") as file:
        file.write(newest)
