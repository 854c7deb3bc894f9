"""Keeps a copy of our state at the parent, anchored in escrow, while the server runs.

wanted ─ snapshot ─ put ─ anchor ─ done        whoever waits for a checkpoint joins the next one that begins
                            └ overtaken: another one of us runs on this state; this one stops
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import trio

from bot.boot.secret import encode_secret
from bot.boot.unlock import Halted, Unlocked
from bot.checkpoint.blobs import BlobsFailed
from bot.checkpoint.packer import Snapshot
from bot.checkpoint.saver import Saver
from bot.checkpoint.scan import scan_database
from bot.clock import Clock
from bot.server.nudge import Nudge

log = structlog.get_logger()
# The books go with every checkpoint. Ids of what was acted on can wait for the minute: what is replayed after a restore
# is older than the freshness window, or is refused by the books.
BOOKS, OTHERS = "enclaved.sqlite", ("seen.sqlite",)
EVERY_S, LOOK_S = 60.0, 10.0
# Who waits for a checkpoint is told so late that there is none, and may ask again.
PATIENCE_S = 20.0
RETRY_S = 2.0
LAST_S = 30.0
OVERTAKEN = (
    "another enclave was started from this state after this one, and escrow knows it as the newest: this one stops serving"
    " and paying; run only one"
)


@dataclass(frozen=True)
class Newest:
    """The last checkpoint that was anchored. ``at_s``: boot time."""

    number: int
    put_bytes: int
    at_s: float


class Checkpointer:
    """`handlers.ports.Durability`."""

    def __init__(
        self,
        unlocked: Unlocked,
        state_dir: Path,
        clock: Clock,
        tell: Callable[[str], Awaitable[None]],
    ) -> None:
        self._unlocked, self._state, self._clock, self._tell = unlocked, state_dir, clock, tell
        self._nudge = Nudge()
        # Counts of moments: up to which one somebody waits, which one is being tried, which one is anchored.
        self._wanted = self._tried = self._done = 0
        self._over = trio.Event()
        self._digests: dict[str, str] = {}
        self._next_full_s = trio.current_time()
        self.newest: Newest | None = None

    async def reached(self) -> bool:
        self._wanted += 1
        mine = self._wanted
        self._nudge()
        with trio.move_on_after(PATIENCE_S):
            # A try that begins from now on covers all that is written now; when it fails, we are told at once.
            while self._tried < mine:
                await self._over.wait()
        return self._done >= mine

    async def run(self) -> None:
        """Raises `Halted` when another one of us has taken over."""
        while True:
            took_turn = await self._nudge.wait(LOOK_S)
            full = trio.current_time() >= self._next_full_s
            if took_turn or full or self._wanted > self._tried:
                if not await self._try(full=full):
                    await trio.sleep(RETRY_S)
            else:
                await self._not_overtaken(await self._unlocked.keeper.find_ahead())

    async def last(self) -> bool:
        """Everything once more, at the end. Whether it is anchored; raises `Halted` when it must not be."""
        with trio.move_on_after(LAST_S):
            return await self._try(full=True)
        return False

    async def _try(self, *, full: bool) -> bool:
        """One checkpoint of all that is written now. Whether it is anchored."""
        mine, anchored = self._wanted, False
        try:
            anchored = await self._save(full=full)
        except BlobsFailed as error:
            log.warning("checkpoint failed", reason=str(error))
        finally:
            self._tried = mine
            if anchored:
                self._done = mine
            self._over.set()
            self._over = trio.Event()
        return anchored

    async def _save(self, *, full: bool) -> bool:
        keeper, saver = self._unlocked.keeper, self._unlocked.saver
        names = (BOOKS, *OTHERS) if full else (BOOKS,)
        changed = [s for name in names if (s := await self._changed(saver, name)) is not None]
        put_bytes = 0
        if changed or saver.last is None:
            put_bytes = await self._put(saver, changed)
        assert saver.last is not None  # noqa: S101 - boot made the first one
        head = saver.last.head
        refreshed = await keeper.anchor(head)
        await self._not_overtaken(refreshed.ahead)
        if not refreshed.is_safe:
            log.warning("checkpoint is not anchored", number=head.number, failed=refreshed.failed)
            return False
        self.newest = Newest(head.number, put_bytes, trio.current_time())
        if full:
            self._next_full_s = trio.current_time() + EVERY_S
            await saver.settle(head)
        return True

    async def _not_overtaken(self, ahead: Sequence[str]) -> None:
        if ahead:
            await self._tell(OVERTAKEN)
            raise Halted(OVERTAKEN)

    async def _put(self, saver: Saver, changed: Sequence[Snapshot]) -> int:
        fresh = {snapshot.name for snapshot in changed}
        same = (
            [e.name for e in saver.last.manifest.entries if e.name not in fresh]
            if saver.last
            else []
        )
        secret = replace(self._unlocked.secret, holders=self._unlocked.keeper.holders)
        saved = await saver.save(changed, same, encode_secret(secret), self._clock.now())
        self._digests |= {snapshot.name: _digest(snapshot) for snapshot in changed}
        log.info("checkpoint", number=saved.state.head.number, bytes=saved.put_bytes)
        return saved.put_bytes

    async def _changed(self, saver: Saver, name: str) -> Snapshot | None:
        """The file as it is, unless the last checkpoint has it so."""
        snapshot = await trio.to_thread.run_sync(scan_database, self._state / name, name)
        is_same = self._digests.get(name) == _digest(snapshot) and saver.is_kept(name)
        return None if is_same else snapshot


def _digest(snapshot: Snapshot) -> str:
    ((_, raw),) = snapshot.parts
    return hashlib.sha256(raw).hexdigest()
