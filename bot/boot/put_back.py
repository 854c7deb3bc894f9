"""Files of the last checkpoint, back where they were: the first thing after escrow gave the key."""

import os
from pathlib import Path

import structlog

from bot.boot.unlock import Halted, Unlocked
from bot.checkpoint.blobs import BlobsFailed
from bot.checkpoint.restore import Progress, restore
from bot.checkpoint.seal import BadCheckpoint

log = structlog.get_logger()
_ASIDE = ".restoring"


async def put_back(unlocked: Unlocked, folder: Path, progress: Progress) -> None:
    """What is there already stays: this process died, not the machine, and what it wrote is newer than any copy.

    Raises `Halted`. A file has its name only when it is whole.
    """
    state = unlocked.saver.last
    assert state is not None  # noqa: S101 - there is one since this boot's first
    missing = [e for e in state.manifest.entries if not (folder / e.name).exists()]
    if not missing:
        return
    files = {entry.name: _open(folder, entry.name, entry.size) for entry in missing}
    try:
        sinks = {
            name: lambda offset, data, file=file: os.pwrite(file, data, offset)
            for name, file in files.items()
        }
        await restore(unlocked.sealer, unlocked.blobs, state, sinks, progress)
    except (BadCheckpoint, BlobsFailed) as error:
        raise Halted(f"the backup cannot be restored: {error}") from error
    finally:
        for file in files.values():
            os.close(file)
    for name in files:
        (folder / f"{name}{_ASIDE}").rename(folder / name)
    log.info("restored", files=sorted(files), bytes=progress.done_bytes, number=state.head.number)


def _open(folder: Path, name: str, size: int) -> int:
    """Empty, and as long as the file. The checkpoint is ours, and yet no name of it leads out of the folder."""
    if "/" in name or name.startswith("."):
        raise Halted(f"the backup holds a file of the name {name!r}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(folder / f"{name}{_ASIDE}", flags, 0o600)
    os.ftruncate(file, size)
    return file
