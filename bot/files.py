"""Files, read with care and written whole."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Closable(Protocol):
    def close(self) -> None: ...


@contextmanager
def closed_on_failure(opened: Closable) -> Iterator[None]:
    """For constructors: what was opened is closed again when the rest of them fails, since nobody else ever could."""
    try:
        yield
    except BaseException:
        opened.close()
        raise


def read_bounded(path: Path, most: int) -> bytes:
    """A regular file of at most so many bytes. Raises `OSError` for anything else: the parent hands us
    files, and a pipe would make us wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
    return content


def write_whole(path: Path, content: bytes) -> None:
    """Written aside, synced and renamed: a crash leaves the old file or the new one, never half of one."""
    aside = path.with_name(path.name + ".new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """What was made, renamed or removed in it is on the disk. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
