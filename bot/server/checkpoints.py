"""Keeps a copy of our state at the parent, anchored in escrow, while the server runs.

wanted ─ snapshot ─ put ─ anchor ─ done ─ settle        whoever waits for a checkpoint joins the next one that begins
                            └ overtaken: another one of us runs on this state; this one stops
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import structlog
import trio

from bot.adapters.disks.copies import Copying, DiskCopies
from bot.adapters.disks.disks import LAYER, VOLUMES
from bot.adapters.docker_engine import DockerEngine
from bot.adapters.engine.cgroup import DoesNotStandStill
from bot.boot.put_back import BOOKS
from bot.boot.secret import encode_secret
from bot.boot.unlock import OVERTAKEN, Halted, Overtaken, Unlocked
from bot.checkpoint.blobs import BlobsFailed
from bot.checkpoint.packer import Snapshot
from bot.checkpoint.scan import scan_database
from bot.clock import Clock
from bot.server.nudge import Nudge
from keycrux_client.shares import Head

log = structlog.get_logger()
# The books go with every checkpoint. Ids of what was acted on can wait for the minute: what is replayed after a restore
# is older than the freshness window, or is refused by the books.
OTHERS = ("seen.sqlite",)
EVERY_S, LOOK_S = 60.0, 10.0
# Who waits for a checkpoint is told so late that there is none, and may ask again.
PATIENCE_S = 20.0
RETRY_S, RETRY_FULL_S = 2.0, 10.0
LAST_S = 30.0
# While escrow takes none, so many are made; then the last one is offered until it does. Each may be the one that some
# service holds, so none of them can be deleted before.
MOST_UNANCHORED = 16
# So long, at most, we wait for the parent when nothing depends on his answer.
SETTLE_S = 20.0
TELL_S = 5.0


async def _no_containers() -> frozenset[str]:
    return frozenset()


@dataclass(frozen=True)
class Newest:
    """The last checkpoint that was anchored. ``at_s``: boot time."""

    number: int
    put_bytes: int
    at_s: float


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


class Checkpointer:
    """`handlers.ports.Durability`."""

    def __init__(
        self,
        unlocked: Unlocked,
        state_dir: Path,
        clock: Clock,
        tell: Callable[[str], Awaitable[None]],
        every_s: float = EVERY_S,
    ) -> None:
        self._every_s = every_s
        self._unlocked, self._state, self._clock, self._tell = unlocked, state_dir, clock, tell
        self._nudge = Nudge()
        # Counts of moments: up to which one somebody waits, which one is being tried, which one is anchored.
        self._wanted = self._tried = self._done = 0
        self._over = trio.Event()
        self._digests: dict[str, str] = {}
        # Who has which part by the last checkpoint that was put.
        self._holders = unlocked.secret.holders
        self._next_full_s = trio.current_time()
        self._disks: EngineDisks | None = None
        self._money: Callable[[], Awaitable[frozenset[str]]] = _no_containers
        self.newest: Newest | None = None
        self.anchored: Head | None = None

    def with_disks(
        self, disks: EngineDisks, money: Callable[[], Awaitable[frozenset[str]]]
    ) -> None:
        """Copy containers' disks as well, from now on: once there is an engine. ``money``: containers that hold some of
        ours, whose disks go with the books: what the books say was received must lie there after a restore."""
        self._disks, self._money = disks, money

    def soon(self) -> None:
        self._wanted += 1
        self._nudge()

    async def reached(self) -> bool:
        self.soon()
        mine = self._wanted
        with trio.move_on_after(PATIENCE_S):
            # A try that begins from now on covers all that is written now; when it fails, we are told at once.
            while self._tried < mine:
                await self._over.wait()
        return self._done >= mine

    async def run(self) -> None:
        """Raises `Overtaken` when another one of us has taken over."""
        while True:
            took_turn = await self._nudge.wait(min(LOOK_S, self._every_s))
            full = trio.current_time() >= self._next_full_s
            if took_turn or full or self._wanted > self._tried:
                if not await self._try(full=full):
                    await trio.sleep(RETRY_S)
            else:
                await self._look()

    async def _look(self) -> None:
        """Between checkpoints: has anybody taken over?"""
        try:
            ahead = await self._unlocked.keeper.find_ahead()
        except Exception:
            log.exception("escrow could not be looked at")
            return
        await self._not_overtaken(ahead)

    async def last(self) -> bool:
        """Everything once more, at the end. Whether it is anchored; raises `Overtaken` when it must not be."""
        with trio.move_on_after(LAST_S):
            return await self._try(full=True)
        return False

    async def _try(self, *, full: bool) -> bool:
        """One checkpoint of all that is written now. Whether it is anchored."""
        mine, anchored = self._wanted, False
        try:
            anchored = await self._save(full=full)
        except (BlobsFailed, DoesNotStandStill) as error:
            log.warning("checkpoint failed", reason=str(error))
        except Halted:
            raise
        except Exception:
            # Whoever waits is told that there is none; the next one may do better.
            log.exception("checkpoint failed")
        finally:
            self._tried = mine
            if anchored:
                self._done = mine
            self._over.set()
            self._over = trio.Event()
        if full:
            wait_s = self._every_s if anchored else min(self._every_s, RETRY_FULL_S)
            self._next_full_s = trio.current_time() + wait_s
        if full and anchored:
            await self._settle()
        return anchored

    async def _save(self, *, full: bool) -> bool:
        saver = self._unlocked.saver
        if saver.unsettled > MOST_UNANCHORED and not await self._catch_up():
            return False
        put_bytes = await (self._put_all() if full else self._put_books())
        assert saver.last is not None  # noqa: S101 - boot made the first one
        head = saver.last.head
        if not await self._anchor(head):
            return False
        self.newest = Newest(head.number, put_bytes, trio.current_time())
        if put_bytes:
            disks = sum(name.endswith((LAYER, VOLUMES)) for name in saver.last.indexes)
            log.info("checkpoint", number=head.number, bytes=put_bytes, disks=disks, full=full)
        return True

    async def _catch_up(self) -> bool:
        """Nothing more is put before escrow has taken what was put last."""
        last = self._unlocked.saver.last
        assert last is not None  # noqa: S101 - boot made the first one
        if last.head != self.anchored and not await self._anchor(last.head):
            return False
        await self._settle()
        return True

    async def _anchor(self, head: Head) -> bool:
        refreshed = await self._unlocked.keeper.anchor(head, self._holders)
        await self._not_overtaken(refreshed.ahead)
        if not refreshed.is_safe:
            log.warning("checkpoint is not anchored", number=head.number, failed=refreshed.failed)
            return False
        self.anchored = head
        return True

    async def _settle(self) -> None:
        """What nobody needs any more is deleted at the keeper; what is anchored stays so whatever he answers."""
        assert self.anchored is not None  # noqa: S101 - called after an anchor
        try:
            with trio.fail_after(SETTLE_S):
                await self._unlocked.saver.settle(self.anchored)
        except (BlobsFailed, trio.TooSlowError) as error:
            log.warning("old checkpoints are not deleted yet", reason=str(error))

    async def _not_overtaken(self, ahead: Sequence[str]) -> None:
        if not ahead:
            return
        # Whatever the parent does with it: this one stops.
        with trio.move_on_after(TELL_S):
            try:
                await self._tell(OVERTAKEN)
            except Exception:
                log.exception("the parent could not be told")
        raise Overtaken(OVERTAKEN)

    async def _put_books(self) -> int:
        """Money alone, upon all else as it was; how many bytes, none when nothing was written since."""
        money = await self._money()
        books, copying = await self._changed(BOOKS), Copying(only=money, must=money)
        # After the books, which must not know more than the wallet.
        disks = await trio.to_thread.run_sync(list, await self._copies(copying))
        changed = [*([books] if books is not None else []), *disks]
        if not changed:
            return 0
        names, last = {snapshot.name for snapshot in changed}, self._unlocked.saver.last
        same = [e.name for e in last.manifest.entries if e.name not in names] if last else []
        return await self._put(changed, same, copying)

    async def _put_all(self) -> int:
        """Everything that changed. Disks are copied in their turn, so that only one container's are in memory."""
        names = (BOOKS, *OTHERS)
        found = [snapshot for name in names if (snapshot := await self._changed(name)) is not None]
        fresh = {snapshot.name for snapshot in found}
        same = [name for name in names if name not in fresh]
        copying = Copying(must=await self._money(), same=same)
        disks = await self._copies(copying)
        return await self._put(chain(found, disks), copying.same, copying)

    async def _copies(self, copying: Copying) -> Iterator[Snapshot]:
        if self._disks is None:
            return iter(())
        return await self._disks.copies(copying, self._unlocked.saver.is_kept)

    async def _put(
        self, snapshots: Iterable[Snapshot], same: Sequence[str], copying: Copying
    ) -> int:
        digests: dict[str, str] = {}
        holders = self._unlocked.keeper.holders
        secret = replace(self._unlocked.secret, holders=holders)
        saved = await self._unlocked.saver.save(
            _digested(snapshots, digests), same, encode_secret(secret), self._clock.now()
        )
        self._digests |= digests
        self._holders = holders
        if self._disks is not None:
            self._disks.kept(copying)
        return saved.put_bytes

    async def _changed(self, name: str) -> Snapshot | None:
        """The database as it is, unless the last checkpoint has it so."""
        snapshot = await trio.to_thread.run_sync(scan_database, self._state / name, name)
        is_same = self._digests.get(name) == _digest(snapshot) and self._unlocked.saver.is_kept(
            name
        )
        return None if is_same else snapshot


def _digested(snapshots: Iterable[Snapshot], digests: dict[str, str]) -> Iterator[Snapshot]:
    """The same, with the digests of databases noted."""
    for snapshot in snapshots:
        if snapshot.name in (BOOKS, *OTHERS):
            digests[snapshot.name] = _digest(snapshot)
        yield snapshot


def _digest(snapshot: Snapshot) -> str:
    return hashlib.sha256(snapshot.parts[0][1]).hexdigest()
