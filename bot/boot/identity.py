"""Files that hold who we are, used by one process at a time."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bot.files import write_whole
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


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; two servers on one state would fork it. Raises `OSError`."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, "another server uses this folder", str(folder)) from None
        yield
