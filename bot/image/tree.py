"""A folder as the entries of a ramdisk."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from bot.image.cpio import BadCpio, Entry


def entries_of(
    folder: Path, below: str, is_left_out: Callable[[str], bool] = lambda _: False
) -> Iterator[Entry]:
    """All that lies in it, under the path ``below``, which is made as well. ``is_left_out`` is asked about paths within the
    folder; what lies in a folder that is left out is so too. Raises OSError, `BadCpio`."""
    if below:
        yield Entry(os.fsencode(below), stat.S_IFDIR | 0o755)
    base = f"{below}/" if below else ""
    yield from _walk(folder, base, "", is_left_out)


def _walk(
    folder: Path, base: str, inside: str, is_left_out: Callable[[str], bool]
) -> Iterator[Entry]:
    for found in sorted(os.scandir(folder / inside), key=lambda entry: entry.name):
        path = f"{inside}{found.name}"
        if is_left_out(path):
            continue
        yield _entry(found, os.fsencode(base + path))
        if found.is_dir(follow_symlinks=False):
            yield from _walk(folder, base, f"{path}/", is_left_out)


def _entry(found: os.DirEntry[str], path: bytes) -> Entry:
    about = found.stat(follow_symlinks=False)
    if stat.S_ISDIR(about.st_mode):
        content = b""
    elif stat.S_ISLNK(about.st_mode):
        content = os.fsencode(Path(found.path).readlink())
    elif stat.S_ISREG(about.st_mode):
        content = Path(found.path).read_bytes()
    else:
        raise BadCpio(f"{found.path} is neither file, folder nor link")
    return Entry(path, about.st_mode, content, about.st_uid, about.st_gid)
