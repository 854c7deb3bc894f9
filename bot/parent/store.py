"""Opaque blobs in a folder, and their copies on another remote. Their names mean nothing here.

A put is acknowledged when it is on this disk; the copy follows, and how far it lags is shown. What the enclave orders
to be deleted is deleted in both places, and nothing else ever is: a folder that was lost comes back from the remote.
"""

import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from bot.checkpoint.blobs import is_manifest_name
from bot.checkpoint.folder import Folder

log = structlog.get_logger()
RETRY_FIRST_S, RETRY_MOST_S = 1.0, 60.0
MOST_WAITING = 10_000
WRITE_BYTES = 2 << 20
COPY_S = 3_600.0
# rclone's exit code for a folder that does not exist, or not yet.
NOT_THERE = 3


@dataclass(frozen=True)
class Kept:
    """What there is: ``newest_at`` is when the newest checkpoint came (Unix seconds), None when there is none."""

    blobs: int
    bytes: int
    newest_at: float | None


class BlobStore:
    """Raises OSError."""

    def __init__(self, folder: Folder, remote: "Remote | None" = None) -> None:
        self._folder, self._remote = folder, remote

    async def put(self, name: str, pieces: AsyncIterator[bytes]) -> None:
        """Of two that put the same name at once, the one that ends later stays."""
        with self._folder.incoming(name) as blob:
            some = bytearray()
            async for piece in pieces:
                some += piece
                # A way to a thread and back for each piece would cost more than the piece.
                if len(some) >= WRITE_BYTES:
                    await trio.to_thread.run_sync(blob.write, bytes(some))
                    some.clear()
            await trio.to_thread.run_sync(blob.write, bytes(some))
            await trio.to_thread.run_sync(blob.keep)
        if self._remote is not None:
            self._remote.changed(name)

    async def size(self, name: str) -> int | None:
        return await trio.to_thread.run_sync(self._folder.size, name)

    async def get(self, name: str, most_bytes: int) -> bytes | None:
        return await trio.to_thread.run_sync(self._folder.get, name, most_bytes)

    async def names(self) -> list[str]:
        return await trio.to_thread.run_sync(self._folder.names)

    async def delete(self, names: Sequence[str]) -> None:
        await trio.to_thread.run_sync(self._folder.delete, names)
        if self._remote is not None:
            for name in names:
                self._remote.changed(name)

    def kept(self) -> Kept:
        """Blocking."""
        stats = [(path.name, path.stat()) for path in self._folder.path.iterdir()]
        newest = [stat.st_mtime for name, stat in stats if is_manifest_name(name)]
        return Kept(len(stats), sum(stat.st_size for _, stat in stats), max(newest, default=None))


class Remote:
    """Another place for the same blobs, through rclone: ``where`` is as rclone writes it (``s3:bucket/folder``)."""

    def __init__(self, folder: Path, where: str, config: Path | None = None) -> None:
        self._folder, self._where = folder, where
        self._options = ["--config", str(config)] if config is not None else []
        # Names whose copy is not as it should be, and since when.
        self._waiting: dict[str, float] = {}
        self._woken = trio.Event()

    def changed(self, name: str) -> None:
        """It was put, or deleted."""
        self._waiting.setdefault(name, time.monotonic())
        while len(self._waiting) > MOST_WAITING:
            # The next copy of everything finds it.
            self._waiting.pop(next(iter(self._waiting)))
        self._woken.set()

    @property
    def lag_s(self) -> float:
        """How long the oldest change has been waiting; 0 when all is copied."""
        return time.monotonic() - min(self._waiting.values()) if self._waiting else 0.0

    async def run(self) -> None:
        """All that is here goes there, then each change. Until cancelled."""
        await self._again_and_again(self._copy_all)
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            await self._again_and_again(self._copy_changes)

    async def bring_back(self) -> None:
        """What is there and not here, if there is nothing here: this disk may be a new one. Raises `RemoteFailed`."""
        if not any(self._folder.iterdir()):
            await self._rclone("copy", self._where, str(self._folder), fine=(0, NOT_THERE))

    async def _again_and_again(self, work: Callable[[], Awaitable[None]]) -> None:
        wait_s = RETRY_FIRST_S
        while True:
            try:
                await work()
                return
            except RemoteFailed as error:
                log.warning("remote.failed", reason=str(error), retry_s=wait_s)
            await trio.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_MOST_S)

    async def _copy_all(self) -> None:
        await self._rclone("copy", str(self._folder), self._where, "--exclude", ".*")

    async def _copy_changes(self) -> None:
        changes = dict(self._waiting)
        there = {name for name in changes if (self._folder / name).exists()}
        if there:
            listed = "".join(f"{name}\n" for name in sorted(there)).encode()
            await self._rclone(
                "copy", str(self._folder), self._where, "--files-from", "-", stdin=listed
            )
        gone = changes.keys() - there
        if gone:
            listed = "".join(f"{name}\n" for name in sorted(gone)).encode()
            await self._rclone("delete", self._where, "--files-from", "-", stdin=listed)
        for name, since in changes.items():
            if self._waiting.get(name) == since:
                del self._waiting[name]

    async def _rclone(
        self, *arguments: str, stdin: bytes = b"", fine: Sequence[int] = (0,)
    ) -> None:
        try:
            with trio.fail_after(COPY_S):
                done = await trio.run_process(
                    ["rclone", *self._options, *arguments],
                    stdin=stdin,
                    capture_stdout=True,
                    stderr=subprocess.STDOUT,
                    check=False,
                )
        except (OSError, trio.TooSlowError) as error:
            raise RemoteFailed(f"rclone {arguments[0]}: {error}") from error
        if done.returncode not in fine:
            raise RemoteFailed(
                f"rclone {arguments[0]}: {done.stdout.decode(errors='replace')[-300:]}"
            )


class RemoteFailed(Exception):
    """The other place does not take it, or does not give it; it is tried again."""
