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
from bot.files import sync_folder

log = structlog.get_logger()
RETRY_FIRST_S, RETRY_MOST_S = 1.0, 60.0
MOST_WAITING = 10_000
WRITE_BYTES = 2 << 20
COPY_S = 3_600.0
# rclone's exit code for a folder that does not exist, or not yet.
NOT_THERE = 3
# We try again ourselves, and say why: by itself it would be silent for minutes.
QUICKLY = ("--retries", "1", "--low-level-retries", "3", "--contimeout", "10s", "--timeout", "60s")


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
    """Another place for the same blobs, through rclone: ``where`` is as rclone writes it (``s3:bucket/folder``).

    ``problem``: why the last try failed, until one does not.
    """

    def __init__(self, folder: Path, where: str, config: Path | None = None) -> None:
        self._folder, self._where = folder, where
        self._options = [*QUICKLY, *(["--config", str(config)] if config is not None else [])]
        # Names whose copy is not as it should be: since when, and the number of the last change.
        self._waiting: dict[str, tuple[float, int]] = {}
        self._changes = 0
        # Since when not even everything was copied once.
        self._all_due_s: float | None = time.monotonic()
        self._woken = trio.Event()
        self.problem: str | None = None

    def changed(self, name: str) -> None:
        """It was put, or deleted."""
        self._changes += 1
        since_s, _ = self._waiting.get(name, (time.monotonic(), 0))
        self._waiting[name] = since_s, self._changes
        while len(self._waiting) > MOST_WAITING:
            # A copy of everything finds it; what was deleted stays there, and costs room only.
            since_s, _ = self._waiting.pop(next(iter(self._waiting)))
            self._all_due_s = min(since_s, self._all_due_s or since_s)
        self._woken.set()

    @property
    def lag_s(self) -> float:
        """How long the oldest change has been waiting; 0 when all is copied."""
        since_s = [at_s for at_s, _ in self._waiting.values()]
        if self._all_due_s is not None:
            since_s.append(self._all_due_s)
        return time.monotonic() - min(since_s) if since_s else 0.0

    async def run(self) -> None:
        """All that is here goes there, then each change. Until cancelled."""
        while True:
            if self._all_due_s is not None:
                await self._again_and_again(self._copy_all)
            await self._woken.wait()
            self._woken = trio.Event()
            await self._again_and_again(self._copy_changes)

    async def bring_back(self) -> None:
        """What is there, if there is nothing here: this disk may be a new one. Raises `RemoteFailed`, OSError.

        All of it or nothing: what was cut by a power cut would count as ours, and be copied over what is whole there. The
        next try goes on with what came.
        """
        if any(self._folder.iterdir()):
            return
        coming = self._folder.with_name(f"{self._folder.name}.coming")
        coming.mkdir(mode=0o700, exist_ok=True)
        await self._rclone("copy", self._where, str(coming), fine=(0, NOT_THERE))
        await trio.to_thread.run_sync(_take_over, coming, self._folder)

    async def _again_and_again(self, work: Callable[[], Awaitable[None]]) -> None:
        wait_s = RETRY_FIRST_S
        while True:
            try:
                await work()
                self.problem = None
                return
            except RemoteFailed as error:
                self.problem = str(error)
                log.warning("remote.failed", reason=str(error), retry_s=wait_s)
            await trio.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_MOST_S)

    async def _copy_all(self) -> None:
        due_s, self._all_due_s = self._all_due_s, None
        try:
            await self._rclone("copy", str(self._folder), self._where, "--exclude", ".*")
        except RemoteFailed:
            self._all_due_s = due_s
            raise

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
            await self._rclone(
                "delete", self._where, "--files-from", "-", stdin=listed, fine=(0, NOT_THERE)
            )
        for name, change in changes.items():
            # One that changed again meanwhile may have been copied before that.
            if self._waiting.get(name) == change:
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


def _take_over(coming: Path, folder: Path) -> None:
    """One step, for the folder is empty."""
    coming.rename(folder)
    sync_folder(folder.parent)


class RemoteFailed(Exception):
    """The other place does not take it, or does not give it; it is tried again."""
