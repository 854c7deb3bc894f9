"""Files that hold who we are: read with care, written whole, used by one process at a time."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nips.errors import BadKey
from nips.keys import SecretKey


def read_secret_text(path: Path) -> str:
    """A key or URI in a file of its own. Raises `BadKey`, which never repeats it, or `OSError`."""
    try:
        return path.read_text().strip()
    except UnicodeDecodeError:
        raise BadKey(f"{path} is not a text file") from None


def load_key(path: Path) -> SecretKey:
    """The key in the file, or a new one that is written there. Raises `BadKey`."""
    with suppress(FileNotFoundError):
        return SecretKey.parse(read_secret_text(path))
    key = SecretKey.generate()
    write_whole(path, key.reveal_secret().hex().encode())
    return key


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


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; two servers on one state would fork it. Raises `OSError`."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, "another server uses this folder", str(folder)) from None
        yield


def write_whole(path: Path, content: bytes) -> None:
    """Written aside, synced and renamed: a crash leaves the old file or the new one, never half of one."""
    aside = path.with_name(path.name + ".new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
