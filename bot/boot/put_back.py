"""Files of the last checkpoint, back where they were: the first thing after escrow gave the key."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from bot.adapters.disks.disks import LAYER, VOLUMES
from bot.boot.unlock import Halted, Unlocked
from bot.checkpoint.blobs import BlobsFailed
from bot.checkpoint.restore import Progress, restore
from bot.checkpoint.seal import BadCheckpoint

log = structlog.get_logger()


@dataclass(frozen=True)
class Folders:
    """Where files of a checkpoint belong: ``disks`` those of containers, whose blocks must all be there from the start;
    ``state`` all others."""

    state: Path
    disks: Path | None

    def path(self, name: str) -> Path | None:
        """None for a disk where there is no place for disks. The checkpoint is ours; and yet no name leads elsewhere."""
        if "/" in name or name.startswith("."):
            raise Halted(f"the backup holds a file of the name {name!r}")
        folder = self.disks if _is_disk(name) else self.state
        return folder / name if folder is not None else None


def _is_disk(name: str) -> bool:
    return name.endswith((VOLUMES, LAYER))


async def put_back(unlocked: Unlocked, folders: Folders, progress: Progress) -> None:
    """What is there already stays: this process died, not the machine, and what it wrote is newer than any copy.

    Raises `Halted`. A file has its name only when it is whole.
    """
    state = unlocked.saver.last
    assert state is not None  # noqa: S101 - there is one since this boot's first
    entries = state.manifest.entries
    paths = {entry.name: folders.path(entry.name) for entry in entries}
    missing = {
        entry.name: (path, entry.size)
        for entry in entries
        if (path := paths[entry.name]) is not None and not path.exists()
    }
    if not missing:
        return
    try:
        files = {name: _open(*missing[name]) for name in missing}
    except OSError as error:
        raise Halted(f"there is no room for the backup: {error}") from error
    try:
        sinks = {name: _writer(file) for name, file in files.items()}
        await restore(unlocked.sealer, unlocked.blobs, state, sinks, progress)
    except (BadCheckpoint, BlobsFailed) as error:
        raise Halted(f"the backup cannot be restored: {error}") from error
    finally:
        for file in files.values():
            os.close(file)
    for path, _ in missing.values():
        _aside(path).rename(path)
    log.info("restored", files=len(files), bytes=progress.done_bytes, number=state.head.number)


def _writer(file: int) -> Callable[[int, bytes], object]:
    return lambda offset, data: os.pwrite(file, data, offset)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _open(path: Path, size: int) -> int:
    """Empty, and as long as the file; a disk with all of its blocks."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(_aside(path), flags, 0o600)
    os.ftruncate(file, size)
    if _is_disk(path.name):
        os.posix_fallocate(file, 0, size)
    return file
