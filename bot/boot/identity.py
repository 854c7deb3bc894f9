"""A key in a file of its own: made on the first start, readable only by its owner."""

import os
from contextlib import suppress
from pathlib import Path

from nips.keys import SecretKey


def load_key(path: Path) -> SecretKey:
    """The key in the file, or a new one that is written there."""
    with suppress(FileNotFoundError):
        return SecretKey.parse(path.read_text().strip())
    key = SecretKey.generate()
    write_whole(path, key.reveal_secret().hex().encode())
    return key


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
