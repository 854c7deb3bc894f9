"""A file that is an ext4 file system, with every block of it preallocated. Blocking; raises OSError."""

import errno
import os
import subprocess
from pathlib import Path

# Images are whole pieces of this, as checkpoints copy them.
STEP_BYTES = 65_536
_BLOCK_BYTES = 512
_MAKE = [
    "mke2fs",
    "-q",
    "-F",
    "-t",
    "ext4",
    "-b",
    "4096",
    "-O",
    "^has_journal,^resize_inode",
    "-m",
    "0",
]


def make_image(path: Path, size: int, content: Path | None = None) -> None:
    """A new one, with a folder's content in it. It has its name only when it is whole.

    The file system first, the blocks then: the other way round mke2fs would give them back.
    """
    aside = path.with_name(path.name + ".new")
    aside.unlink(missing_ok=True)
    try:
        with aside.open("xb") as file:
            file.truncate(rounded(size))
        filled = ["-d", str(content)] if content is not None else []
        options = ["-E", "lazy_itable_init=1,nodiscard", *filled]
        done = subprocess.run(
            [*_MAKE, *options, str(aside)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise OSError(errno.ENOSPC, f"mke2fs: {done.stderr.strip()[-200:]}", str(path))
        allocate(aside)
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def rounded(size: int) -> int:
    """Up to whole pieces."""
    return size + -size % STEP_BYTES


def allocate(path: Path) -> None:
    """Every block, or none: whoever comes later must not find that an earlier one's disk was only promised."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        os.posix_fallocate(descriptor, 0, size)
        if os.fstat(descriptor).st_blocks * _BLOCK_BYTES < size:
            raise OSError(errno.ENOSPC, "blocks of the image were given back", str(path))
    finally:
        os.close(descriptor)
