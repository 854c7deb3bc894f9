"""Files of the last checkpoint, back where they were: the first thing after escrow gave the key."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from bot.adapters.disks.disks import LAYER, VOLUMES
from bot.boot.unlock import Halted, Unlocked
from bot.checkpoint.blobs import BlobsFailed
from bot.checkpoint.restore import Progress, restore
from bot.checkpoint.seal import BadCheckpoint

log = structlog.get_logger()
# The books come back last: where they are, all is.
BOOKS = "enclaved.sqlite"
_ASIDE = ".new"


@dataclass(frozen=True)
class Folders:
    """Where files of a checkpoint belong: ``disks`` those of containers, ``state`` all others."""

    state: Path
    disks: Path | None

    @property
    def books(self) -> Path:
        return self.state / BOOKS

    def path(self, name: str) -> Path | None:
        """None for a disk where there is no place for disks. The checkpoint is ours; and yet no name leads elsewhere."""
        if "/" in name or name.startswith("."):
            raise Halted(f"the backup holds a file of the name {name!r}")
        folder = self.disks if name.endswith((VOLUMES, LAYER)) else self.state
        return folder / name if folder is not None else None

    def tidy(self) -> None:
        """Of a restore that did not come to its end."""
        for folder in (self.state, self.disks):
            for path in folder.glob(f"*{_ASIDE}") if folder is not None else ():
                path.unlink()


async def put_back(unlocked: Unlocked, folders: Folders, progress: Progress) -> None:
    """All files, or none: where the books are, this process died and not the machine, and what is there is newer than any
    copy. What is not there then was deleted since. That they are of this line, `Unlocker` has seen to.

    Raises `Halted`. A file has its name only when it is whole.
    """
    state = unlocked.saver.last
    assert state is not None  # noqa: S101 - there is one since this boot's first
    if folders.books.exists():
        return
    sizes = {
        path: entry
        for entry in state.manifest.entries
        if (path := folders.path(entry.name)) is not None
    }
    try:
        folders.tidy()
        with _opened({path: entry.size for path, entry in sizes.items()}) as files:
            sinks = {sizes[path].name: _writer(file) for path, file in files.items()}
            await restore(unlocked.sealer, unlocked.blobs, state, sinks, progress)
        for path in sorted(sizes, key=lambda path: path == folders.books):
            _aside(path).rename(path)
    except (BadCheckpoint, BlobsFailed) as error:
        raise Halted(f"the backup cannot be restored: {error}") from error
    except OSError as error:
        raise Halted(f"there is no room for the backup: {error}") from error
    log.info("restored", files=len(sizes), bytes=progress.done_bytes, number=state.head.number)


@contextmanager
def _opened(sizes: Mapping[Path, int]) -> Iterator[dict[Path, int]]:
    """Empty files aside, with all of their blocks, so that what does not fit is known before anything is written.
    Raises `OSError`; then nothing stays."""
    files: dict[Path, int] = {}
    with ExitStack() as opened:
        try:
            for path, size in sizes.items():
                files[path] = _open(path, size, opened)
            yield files
        except BaseException:
            for path in sizes:
                _aside(path).unlink(missing_ok=True)
            raise


def _open(path: Path, size: int, opened: ExitStack) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(_aside(path), flags, 0o600)
    opened.callback(os.close, file)
    os.ftruncate(file, size)
    if size:
        os.posix_fallocate(file, 0, size)
    return file


def _writer(file: int) -> Callable[[int, bytes], object]:
    def write(offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            # A full disk takes a part of it first, and says so only when it is asked again.
            written = os.pwrite(file, view, offset)
            offset, view = offset + written, view[written:]

    return write


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}{_ASIDE}")
