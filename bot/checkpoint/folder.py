"""A folder as keeper: what the parent has, and what stands in for it on a machine of our own.

A blob is whole and on the disk, or it never was: written aside, synced, renamed, and the folder synced.
"""

import os
import re
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import trio

from bot.checkpoint.blobs import BlobsFailed
from bot.files import read_bounded, sync_folder

T = TypeVar("T")
MOST_NAMES = 200_000
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
_ASIDE = ".aside-"


def is_blob_name(name: str) -> bool:
    """Whether a blob may be called so: one component of a path, and none that hides."""
    return _NAME.fullmatch(name) is not None


class Incoming:
    """A blob that is being written. Left without `keep`, nothing of it stays. Blocking; raises OSError."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path, self._aside = folder / name, folder / f"{_ASIDE}{secrets.token_hex(8)}"
        self._file = self._aside.open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._aside.unlink(missing_ok=True)

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)

    def keep(self) -> None:
        """On the disk when this returns, under its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._aside.rename(self._path)
        sync_folder(self._path.parent)


class Folder:
    """Blocking; raises OSError."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = path
        for aside in path.glob(f"{_ASIDE}*"):
            aside.unlink()

    def incoming(self, name: str) -> Incoming:
        return Incoming(self.path, _checked(name))

    def put(self, name: str, parts: Sequence[bytes]) -> None:
        """On the disk when it returns."""
        with self.incoming(name) as blob:
            for part in parts:
                blob.write(part)
            blob.keep()

    def get(self, name: str, most_bytes: int) -> bytes | None:
        """None when there is none."""
        try:
            return read_bounded(self.path / _checked(name), most_bytes)
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """In bytes; None when there is none."""
        try:
            return (self.path / _checked(name)).stat().st_size
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        with os.scandir(self.path) as found:
            names = [entry.name for entry in found if is_blob_name(entry.name)]
        return sorted(names)[:MOST_NAMES]

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            (self.path / _checked(name)).unlink(missing_ok=True)
        sync_folder(self.path)


def _checked(name: str) -> str:
    if not is_blob_name(name):
        raise OSError(f"{name[:100]!r} is no name of a blob")
    return name


class FolderBlobs:
    """`bot.checkpoint.blobs.Blobs` on a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder: Folder | None = None

    async def put(self, name: str, parts: Sequence[bytes]) -> None:
        await self._do(lambda folder: folder.put(name, parts))

    async def get(self, name: str, most_bytes: int) -> bytes | None:
        return await self._do(lambda folder: folder.get(name, most_bytes))

    async def names(self) -> list[str]:
        return await self._do(Folder.names)

    async def delete(self, names: Sequence[str]) -> None:
        await self._do(lambda folder: folder.delete(names))

    async def _do(self, work: Callable[[Folder], T]) -> T:
        try:
            return await trio.to_thread.run_sync(partial(self._work, work))
        except OSError as error:
            raise BlobsFailed(str(error)) from error

    def _work(self, work: Callable[[Folder], T]) -> T:
        if self._folder is None:
            self._folder = Folder(self._path)
        return work(self._folder)
