"""What goes into a checkpoint: the books, what was acted on, and containers' disks, each as of one moment."""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import trio

from bot.adapters.disks.copies import Copying, DiskCopies
from bot.adapters.docker_engine import DockerEngine
from bot.boot.put_back import BOOKS
from bot.checkpoint.packer import Snapshot
from bot.checkpoint.saver import Saver
from bot.checkpoint.scan import scan_database
from bot.clock import Clock

# The books go with every checkpoint. Ids of what was acted on can wait for the minute: what is replayed after a restore
# is older than the freshness window, or is refused by the books.
OTHERS = ("seen.sqlite",)


class EngineDisks:
    """Containers' disks as the engine has them this moment."""

    def __init__(self, engine: DockerEngine, copies: DiskCopies) -> None:
        self._engine, self._copies = engine, copies

    async def thaw(self) -> None:
        """A process of ours that died in the middle of a copy left a container standing still."""
        await trio.to_thread.run_sync(self._copies.thaw, await self._engine.standing())

    async def copies(self, copying: Copying, is_kept: Callable[[str], bool]) -> Iterator[Snapshot]:
        """As `DiskCopies.take`, to be iterated in a worker thread."""
        return self._copies.take(copying, await self._engine.standing(), is_kept)

    def kept(self, copying: Copying) -> None:
        """They are in a checkpoint now."""
        self._copies.kept(copying)


FindMoney = Callable[[], Awaitable[frozenset[str]]]


async def _no_containers() -> frozenset[str]:
    return frozenset()


class Content:
    """``state``: the server's folder. Puts raise what `Saver.save` raises, and `DoesNotStandStill`."""

    def __init__(self, state: Path, clock: Clock) -> None:
        self._state, self._clock = state, clock
        self._digests: dict[str, str] = {}
        self._disks: EngineDisks | None = None
        self._money: FindMoney = _no_containers

    def with_disks(self, disks: EngineDisks, money: FindMoney | None) -> None:
        """Containers' disks as well, from now on: once there is an engine. ``money``: containers that hold some of
        ours, whose disks go with the books: what the books say was received must lie there after a restore."""
        self._disks, self._money = disks, money or _no_containers

    async def put_books(self, saver: Saver, secret: bytes) -> int:
        """Money alone, upon all else as it was; how many bytes, none when nothing was written since."""
        money = await self._money()
        books, copying = await self._changed(BOOKS, saver), Copying(only=money, must=money)
        # After the books, which must not know more than the wallet.
        disks = await trio.to_thread.run_sync(list, await self._copies(copying, saver))
        changed = [*([books] if books is not None else []), *disks]
        if not changed:
            return 0
        names = {snapshot.name for snapshot in changed}
        same = (
            [e.name for e in saver.last.manifest.entries if e.name not in names]
            if saver.last
            else []
        )
        return await self._put(saver, secret, changed, same, copying)

    async def put_all(self, saver: Saver, secret: bytes) -> int:
        """Everything that changed. Disks are copied in their turn, so that only one container's are in memory."""
        names = (BOOKS, *OTHERS)
        found = [s for name in names if (s := await self._changed(name, saver)) is not None]
        fresh = {snapshot.name for snapshot in found}
        same = [name for name in names if name not in fresh]
        copying = Copying(must=await self._money(), same=same)
        disks = await self._copies(copying, saver)
        return await self._put(saver, secret, chain(found, disks), copying.same, copying)

    async def _copies(self, copying: Copying, saver: Saver) -> Iterator[Snapshot]:
        return (
            await self._disks.copies(copying, saver.is_kept)
            if self._disks is not None
            else iter(())
        )

    async def _put(
        self,
        saver: Saver,
        secret: bytes,
        snapshots: Iterable[Snapshot],
        same: Sequence[str],
        copying: Copying,
    ) -> int:
        digests: dict[str, str] = {}
        saved = await saver.save(_digested(snapshots, digests), same, secret, self._clock.now())
        self._digests |= digests
        if self._disks is not None:
            self._disks.kept(copying)
        return saved.put_bytes

    async def _changed(self, name: str, saver: Saver) -> Snapshot | None:
        """The database as it is, unless the last checkpoint has it so."""
        snapshot = await trio.to_thread.run_sync(scan_database, self._state / name, name)
        is_same = self._digests.get(name) == _digest(snapshot)
        return None if is_same and saver.is_kept(name) else snapshot


def _digested(snapshots: Iterable[Snapshot], digests: dict[str, str]) -> Iterator[Snapshot]:
    """The same, with the digests of databases noted."""
    for snapshot in snapshots:
        if snapshot.name in (BOOKS, *OTHERS):
            digests[snapshot.name] = _digest(snapshot)
        yield snapshot


def _digest(snapshot: Snapshot) -> str:
    return hashlib.sha256(snapshot.parts[0][1]).hexdigest()
