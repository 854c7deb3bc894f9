"""Keeps a copy of our state at the parent, anchored in escrow, while the server runs.

wanted ─ snapshot ─ put ─ anchor ─ done ─ settle        whoever waits for a checkpoint joins the next one that begins
                            └ overtaken: another one of us runs on this state; this one stops
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import trio

from bot.adapters.disks.disks import LAYER, VOLUMES
from bot.adapters.engine.cgroup import DoesNotStandStill
from bot.boot.secret import encode_secret
from bot.boot.unlock import LOST_TURN, OVERTAKEN, Halted, Overtaken, Unlocked
from bot.checkpoint.blobs import BlobsFailed
from bot.checkpoint.seal import Sealer
from bot.clock import Clock
from bot.server.content import Content
from bot.server.nudge import Nudge
from keycrux_client.refresh import Ahead, Refreshed
from keycrux_client.shares import DiskKey, Head, Split, make_split

log = structlog.get_logger()
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
        every_s: float = EVERY_S,
    ) -> None:
        self._every_s = every_s
        self._unlocked, self._tell = unlocked, tell
        self.content = Content(state_dir, clock)
        self._nudge = Nudge()
        # Counts of moments: up to which one somebody waits, which one is being tried, which one is anchored.
        self._wanted = self._tried = self._done = 0
        self._over = trio.Event()
        # Who has which part by the last checkpoint that was put.
        self._holders = unlocked.secret.holders
        self._next_full_s = trio.current_time()
        self._must_rotate = False
        self.newest: Newest | None = None
        self.anchored: Head | None = None

    def rotate(self) -> None:
        """By the operator's order: another disk key, with which all is sealed anew."""
        self._must_rotate, self._next_full_s = True, trio.current_time()
        self._nudge()

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
        """Raises `Halted` when another one of us has its turn, `Overtaken` when it has used it."""
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
        """Everything once more, at the end. Whether it is anchored; raises `Halted` when it must not be."""
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
        if full and (due := self._due_renewal()) is not None:
            is_anchored = await self._renew(*due)
            if is_anchored is not None:
                return is_anchored
        put_bytes = await self._put(full=full)
        assert saver.last is not None  # noqa: S101 - boot made the first one
        head = saver.last.head
        if not await self._anchor(head):
            return False
        self._tell_done(head, put_bytes, full=full)
        return True

    async def _put(self, *, full: bool) -> int:
        put = self.content.put_all if full else self.content.put_books
        secret = self._unlocked.secret_now
        put_bytes = await put(self._unlocked.saver, encode_secret(secret))
        if put_bytes:
            self._holders = secret.holders
        return put_bytes

    def _tell_done(self, head: Head, put_bytes: int, *, full: bool) -> None:
        self.newest = Newest(head.number, put_bytes, trio.current_time())
        if put_bytes:
            last = self._unlocked.saver.last
            disks = sum(name.endswith((LAYER, VOLUMES)) for name in last.indexes) if last else 0
            log.info("checkpoint", number=head.number, bytes=put_bytes, disks=disks, full=full)

    def _due_renewal(self) -> tuple[DiskKey, Split] | None:
        """Another key where that was ordered, another split where the services' number changed."""
        keeper, key = self._unlocked.keeper, self._unlocked.sealer.key
        if self._must_rotate:
            key = DiskKey.generate()
            return key, make_split(key, len(self._unlocked.secret.split.parts))
        split = keeper.fitting_split()
        return (key, split) if split is not None else None

    async def _renew(self, key: DiskKey, split: Split) -> bool | None:
        """Services get the new parts beside the old ones; then the first checkpoint that is made with them takes over.
        None: too few take part now, and all is as before."""
        unlocked, keeper = self._unlocked, self._unlocked.keeper
        holders = await keeper.prepare(key, split)
        if holders is None:
            log.warning(
                "the key is not shared anew: too few services take part", parts=len(split.parts)
            )
            return None
        secret = replace(unlocked.secret_now, split=split, holders=holders)
        if key != unlocked.sealer.key:
            sealer = Sealer(key)
            unlocked = replace(unlocked, sealer=sealer, saver=unlocked.saver.resealed(sealer))
        unlocked = replace(unlocked, secret=secret)
        put_bytes = await self.content.put_all(unlocked.saver, encode_secret(secret))
        # From now on nothing is made with the former any more, whoever answers.
        self._unlocked, self._holders = unlocked, holders
        assert unlocked.saver.last is not None  # noqa: S101 - just put
        head = unlocked.saver.last.head
        if not await self._is_taken(head, await keeper.adopt(head, holders)):
            return False
        if self._must_rotate:
            log.info("the disk key was renewed", number=head.number)
        self._must_rotate = False
        self._tell_done(head, put_bytes, full=True)
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
        return await self._is_taken(head, await self._unlocked.keeper.anchor(head, self._holders))

    async def _is_taken(self, head: Head, refreshed: Refreshed) -> bool:
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

    async def _not_overtaken(self, ahead: Ahead) -> None:
        if not ahead:
            return
        # Who has not written yet may be gone for good; whether we are the newest again, our next boot finds out.
        over = Overtaken(OVERTAKEN) if ahead.has_begun else Halted(LOST_TURN)
        # Whatever the parent does with it: this one stops.
        with trio.move_on_after(TELL_S):
            try:
                await self._tell(str(over))
            except Exception:
                log.exception("the parent could not be told")
        raise over
