"""Gets our identity back through key escrow, or makes one and puts its key there. Halts when unsure.

Escrow names the newest state by its hash; the keeper is asked for exactly that. The order of writes, so that a crash
between any two of them loses nothing:

- restored: we take our turn at a majority of services (see `keycrux_client.fence`), then a checkpoint of a new epoch is put,
  then escrow takes it, then we go on. Whoever else runs on the same state was overtaken with the first of these steps, and
  what he anchored before it is what we restore;
- fresh: a first checkpoint is put, escrow gets the key, the keeper is told that there is a backup, then we go on. A
  checkpoint without that word counts if escrow has its key; if not, nobody was served by it.
"""

import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import structlog
import trio

from bot.boot.line import Line, NoLine, UnknownLine, new_line
from bot.boot.secret import Secret, decode_secret, encode_secret
from bot.checkpoint.blobs import Blobs, BlobsFailed, is_manifest_name
from bot.checkpoint.manifest import Manifest
from bot.checkpoint.restore import read_manifest, read_state
from bot.checkpoint.saver import Saver
from bot.checkpoint.seal import BadCheckpoint, Sealer
from keycrux_client.client import EscrowClient
from keycrux_client.discovery import Discovered, Service
from keycrux_client.fence import Voters, fewest, put_fence
from keycrux_client.protocol import GetReply
from keycrux_client.recovery import Backup, CreateFresh, Halt, Restore, decide, sum_up, values_in
from keycrux_client.refresh import Keeper, Refreshed
from keycrux_client.shares import DiskKey, Fence, Head, gather, make_split
from nips.keys import SecretKey

log = structlog.get_logger()
RETRY_FIRST_S, RETRY_MOST_S = 0.5, 5.0
BACKUP, MOST_BACKUP_BYTES = "backup", 100


OVERTAKEN = (
    "another enclave was started from this state after this one, and escrow knows it as the newest: this one stops serving"
    " and paying; run only one"
)
LOST_TURN = (
    "another enclave that was started from this state took its turn at escrow, and has written nothing yet: this one stops"
    " serving and paying, and looks whether it is still the newest; run only one"
)
STALE = (
    "the files of this machine belong to a life that was overtaken: another enclave went on from the same state, and what"
    " is here must not. Run only one; to start here all the same, start the enclave anew, without these files"
)
UNKNOWN = (
    "there are files on this machine, and nothing says to which life they belong; to start here all the same, start the"
    " enclave anew, without these files"
)


class Halted(Exception):
    """We must not go on; the message says why, and what would help."""


# Of a process that found so: nobody is to start it again.
EXIT_OVERTAKEN = 3


class Overtaken(Halted):
    """Another one of us has gone on: this one never must, however often it is started."""


class _Again(Exception):
    """What was decided upon does not hold any more, or not yet: look again. The message says why."""


@dataclass(frozen=True)
class Unlocked:
    """Who we are, who keeps our key alive, and what further checkpoints are made upon."""

    secret: Secret
    keeper: Keeper
    sealer: Sealer
    saver: Saver
    blobs: Blobs

    @property
    def secret_now(self) -> Secret:
        """For the next checkpoint: with whoever has which part by now, and who must agree."""
        keeper = self.keeper
        return replace(self.secret, holders=keeper.holders, deciders=keeper.deciders)

    @property
    def identity(self) -> SecretKey:
        return self.secret.identity


@dataclass(frozen=True)
class _Seen:
    """What one look at the keeper and escrow showed. ``keys``: of ours; several, where one was giving way to another.
    ``manifests``: by the keys that open them."""

    replies: dict[Service, GetReply]
    backup: Backup
    keys: tuple[DiskKey, ...]
    there: tuple[str, ...]
    manifests: dict[DiskKey, tuple[Manifest, Head]]

    @property
    def highest(self) -> int:
        """The epoch of whoever took his turn last."""
        return max((value.fence.epoch for value in values_in(self.replies.values())), default=0)

    @property
    def was_begun(self) -> bool:
        """Whether somebody made a checkpoint here once."""
        return any(map(is_manifest_name, self.there))


async def _nobody(_: str) -> None:
    pass


async def _no_head(_: str) -> Head | None:
    return None


@dataclass(frozen=True)
class Unlocker:
    """One boot. ``services``: how many must be there before an identity is made. ``tell``: who is told why it does not
    go on, once for each reason. ``line``: whose files are here already, where files outlive a process."""

    client: EscrowClient
    find_services: Callable[[], Awaitable[Discovered]]
    blobs: Blobs
    services: int
    halt_after_s: float
    forget_state: bool = False
    tell: Callable[[str], Awaitable[None]] = _nobody
    find_head: Callable[[str], Awaitable[Head | None]] = _no_head
    line: Line | NoLine = field(default_factory=NoLine)
    # Epochs of our own tries.
    taken: list[int] = field(default_factory=list)

    async def unlock(self) -> Unlocked:
        """Raises `Halted`; `Overtaken` when it must not even be tried again."""
        until_s, waits = trio.current_time() + self.halt_after_s, _waits()
        reason, told = "escrow does not answer in time", ""
        while trio.current_time() < until_s:
            try:
                return await self._attempt(until_s)
            except _Again as again:
                reason = str(again) or reason
            wait_s = next(waits)
            log.warning("halted", reason=reason, retry_s=wait_s)
            if reason != told:
                told = reason
                await self.tell(told)
            await trio.sleep(min(wait_s, max(0.0, until_s - trio.current_time())))
        raise Halted(reason)

    async def _attempt(self, until_s: float) -> Unlocked:
        """One look, and what follows from it. Raises `_Again`, `Halted`."""
        with trio.move_on_at(until_s) as looking:
            decision, seen, heard = await self._decide_once()
        if looking.cancelled_caught:
            raise _Again
        log.info(
            "escrow", backup=seen.backup.value, decision=type(decision).__name__, services=heard
        )
        match decision:
            case Restore():
                return await self._restore(decision, seen)
            case CreateFresh():
                return await self._create(seen, heard, forgetting=decision.forgetting)
            case Halt(reason, retry=True):
                raise _Again(reason)
            case Halt(reason):
                raise Halted(reason)

    async def _decide_once(self) -> tuple[Restore | CreateFresh | Halt, _Seen, int]:
        found = await self.find_services()
        replies = await self.client.get_all(found.services)
        unheard = len(found.silent) + max(0, self.services - len(found.services))
        seen = await self._look(replies)
        opened = {key: head for key, (_, head) in seen.manifests.items()}
        escrow = sum_up([*replies.values()], opened.get, unheard=unheard)
        # A first start that got as far as escrow: what it put is the backup.
        backup = Backup.PRESENT if seen.manifests else seen.backup
        decision = decide(backup, escrow, forget_state=self.forget_state)
        if isinstance(decision, Halt) and backup is Backup.ABSENT and seen.was_begun:
            told = "a first start was interrupted, and nobody was served by it; "
            decision = replace(decision, reason=told + decision.reason)
        return decision, replace(seen, backup=backup), escrow.answered

    async def _look(self, replies: dict[Service, GetReply]) -> _Seen:
        try:
            claimed = await self.blobs.get(BACKUP, MOST_BACKUP_BYTES) is not None
            there = tuple(await self.blobs.names())
            gathered = gather(values_in(replies.values()))
            manifests = {
                found.key: (manifest, found.newest)
                for found in gathered
                if found.newest is not None
                and (manifest := await self._manifest(found.key, found.newest)) is not None
            }
        except BlobsFailed as error:
            log.warning("the keeper of our backup does not answer", reason=str(error))
            return _Seen(replies, Backup.UNKNOWN, (), (), {})
        backup = Backup.PRESENT if claimed else Backup.ABSENT
        return _Seen(replies, backup, tuple(found.key for found in gathered), there, manifests)

    async def _manifest(self, key: DiskKey, head: Head) -> Manifest | None:
        try:
            return await read_manifest(Sealer(key), self.blobs, head)
        except BadCheckpoint as error:
            log.warning("what the keeper handed over is not used", reason=str(error))
            return None

    async def _restore(self, decision: Restore, seen: _Seen) -> Unlocked:
        sealer = Sealer(decision.key)
        manifest, base = seen.manifests[decision.key]
        try:
            secret = decode_secret(manifest.secret)
        except BadCheckpoint as error:
            raise Halted(f"the backup cannot be read: {error}") from error
        line = self._line()
        if line not in (None, secret.line):
            # Before anybody hears of us: whoever went on from this state is not to be disturbed.
            raise Overtaken(STALE)
        await self._heed_relays(secret.identity.pubkey, base)
        fence = self._next_fence(seen)
        await self._take_turn(seen, fence, secret.voters)
        try:
            state = await read_state(sealer, self.blobs, manifest, base)
        except (BadCheckpoint, BlobsFailed) as error:
            # One who still runs may have deleted it before he was overtaken; then escrow knows a newer one.
            raise _Again(f"the backup cannot be read: {error}") from error
        secret = replace(secret, line=line or new_line())
        saver = Saver(sealer, self.blobs, fence.epoch, state, seen.there)
        former = [key for key in seen.keys if key != decision.key]
        keeper = Keeper(
            self.client, self.find_services, decision.key, secret.split, fence, secret.holders,
            deciders=secret.voters, base=base, former=former,
        )  # fmt: skip
        return await self._go_on(
            Unlocked(secret, keeper, sealer, saver, self.blobs), is_fresh=False
        )

    def _next_fence(self, seen: _Seen) -> Fence:
        """Above all that anybody took, and above what we took ourselves in vain: a service that was away since must not take us
        for another."""
        fence = Fence.above([seen.highest, *self.taken])
        self.taken.append(fence.epoch)
        return fence

    async def _take_turn(self, seen: _Seen, fence: Fence, voters: Sequence[Voters]) -> None:
        """Raises `_Again` where too few services still hold what was seen."""
        took = await put_fence(self.client, seen.keys, seen.replies, fence)
        agree, needed = fewest(voters, took)
        if agree < needed:
            raise _Again(
                f"only {agree} of {needed} escrow services needed let us go on: some do not"
                " store, or another one of us is writing"
            )

    async def _create(self, seen: _Seen, heard: int, *, forgetting: bool) -> Unlocked:
        if self.line.has_files:
            raise Halted(
                "there is no backup of the files that are here already: move them away to begin anew"
            )
        key, fence = DiskKey.generate(), Fence.above([])
        sealer, split = Sealer(key), make_split(key, heard)
        secret = Secret(SecretKey.generate(), split, line=self._line() or new_line())
        saver = Saver(sealer, self.blobs, fence.epoch, None, seen.there)
        keeper = Keeper(
            self.client, self.find_services, key, split, fence, forget=forgetting
        )  # fmt: skip
        unlocked = await self._go_on(
            Unlocked(secret, keeper, sealer, saver, self.blobs), is_fresh=True
        )
        try:
            await self.blobs.put(BACKUP, [b"1"])
        except BlobsFailed as error:
            raise Halted(f"the keeper of our backup does not take it: {error}") from error
        return unlocked

    def _line(self) -> str | None:
        """Only what was really read proves that we were overtaken."""
        try:
            return self.line.read()
        except UnknownLine:
            raise Halted(UNKNOWN) from None
        except OSError as error:
            raise Halted(f"{UNKNOWN} ({error.strerror})") from error

    async def _go_on(self, found: Unlocked, *, is_fresh: bool) -> Unlocked:
        """The first checkpoint of this epoch, put and anchored."""
        saver, keeper = found.saver, found.keeper
        same = [entry.name for entry in saver.last.manifest.entries] if saver.last else []
        await keeper.meet()
        secret = found.secret_now
        try:
            saved = await saver.save([], same, encode_secret(secret), self.client.clock.now())
        except BlobsFailed as error:
            raise Halted(f"the keeper of our backup does not take it: {error}") from error
        keeper.offer(saved.state.head, secret.holders)
        await self._make_safe(keeper, is_fresh=is_fresh)
        try:
            self.line.begin(secret.line)
        except OSError as error:
            raise Halted(f"whose files these are cannot be written: {error.strerror}") from error
        return replace(found, secret=secret)

    async def _heed_relays(self, pubkey: str, base: Head) -> None:
        told = await self.find_head(pubkey)
        if told is not None and base.is_behind(told):
            raise Halted(
                f"relays know of our number {told.number} of epoch {told.epoch}, but escrow names "
                f"{base.number} of {base.epoch}: services that held the newest are missing"
            )

    async def _make_safe(self, keeper: Keeper, *, is_fresh: bool) -> None:
        """Nobody is served while our key is in this memory alone, or while a service that was not heard
        before turns out to hold another state of ours."""
        done: Refreshed | None = None
        waits = _waits()
        with trio.move_on_after(self.halt_after_s):
            while True:
                done = await keeper.refresh()
                if is_fresh and (done.ahead or done.conflicts):
                    raise Halted(f"a service holds another state of ours: {_why_unsafe(done)}")
                if done.ahead or (done.conflicts and not done.is_safe):
                    raise _Again(f"another one of us wrote meanwhile: {_why_unsafe(done)}")
                if done.is_safe:
                    log.info("escrow holds our key", services=list(done.stored))
                    return
                log.warning("escrow does not hold our key yet", reason=_why_unsafe(done))
                await trio.sleep(next(waits))
        raise Halted(_why_unsafe(done) if done is not None else "escrow does not answer in time")


def _why_unsafe(done: Refreshed) -> str:
    told = [f"{done.members} of the {done.needed} escrow services needed keep our key"]
    if done.failed:
        told.append(f"not stored by {', '.join(done.failed)}")
    if done.conflicts:
        told.append(f"something else, or newer, is held by {', '.join(done.conflicts)}")
    return "; ".join(told)


def _waits() -> Iterator[float]:
    """Not the same for everybody: two that boot at once must not get in each other's way for ever."""
    wait_s = RETRY_FIRST_S
    while True:
        yield wait_s * secrets.SystemRandom().uniform(0.5, 1.0)
        wait_s = min(wait_s * 2, RETRY_MOST_S)
