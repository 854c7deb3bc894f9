"""Gets our identity back through key escrow, or makes one and puts its key there. Halts when unsure.

The order of writes, so that a crash between any two of them loses nothing:

- restored: the backup is sealed again under a higher number, then escrow learns that number, then we go on;
- fresh: the backup is written aside, escrow gets the key, the backup takes its name, then we go on. What
  lies aside counts as the backup if escrow has its key; if not, nobody was served by it.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import trio

from bot.boot.identity import read_bounded, write_whole
from bot.boot.sealed import MAX_BYTES, BadSeal, Sealed, digest_of, seal, unseal_untrusted
from keycrux_client.client import EscrowClient
from keycrux_client.discovery import Discovered
from keycrux_client.recovery import Backup, CreateFresh, Halt, Restore, decide, sum_up
from keycrux_client.refresh import Keeper, Refreshed
from keycrux_client.shares import DiskKey, Head, Split, make_split
from nips.keys import SecretKey

log = structlog.get_logger()
RETRY_FIRST_S, RETRY_MOST_S = 0.5, 5.0


class Halted(Exception):
    """We must not go on; the message says why, and what would help."""


@dataclass(frozen=True)
class Unlocked:
    """Our identity, and who keeps its key alive."""

    identity: SecretKey
    keeper: Keeper


@dataclass(frozen=True)
class Unlocker:
    """One boot. ``path``: the backup as the parent hands it over, and where the next one goes.
    ``services``: how many must be there before an identity is made."""

    client: EscrowClient
    find_services: Callable[[], Awaitable[Discovered]]
    path: Path
    services: int
    halt_after_s: float
    forget_state: bool = False

    @property
    def _aside(self) -> Path:
        return self.path.with_name(self.path.name + ".fresh")

    async def unlock(self) -> Unlocked:
        """Raises `Halted`."""
        backup, raw = _read_backup(self.path, self._aside)
        decision, heard = await self._decide(backup, raw)
        match decision:
            case Restore():
                return await self._restore(decision, raw, heard)
            case CreateFresh():
                return await self._create(heard, forgetting=decision.forgetting)
            case Halt():
                raise Halted(decision.reason)

    async def _decide(
        self, backup: Backup, raw: bytes
    ) -> tuple[Restore | CreateFresh | Halt, int]:
        """Asked again and again, while another answer is possible; and how many services answer."""
        decision: Restore | CreateFresh | Halt = Halt("escrow was not asked yet", retry=True)
        waits, heard = _waits(), 0
        with trio.move_on_after(self.halt_after_s):
            while True:
                decision, heard = await self._decide_once(backup, raw)
                if not isinstance(decision, Halt) or not decision.retry:
                    break
                wait_s = next(waits)
                log.warning("halted", reason=decision.reason, retry_s=wait_s)
                await trio.sleep(wait_s)
        log.info("escrow", backup=backup.value, decision=type(decision).__name__, services=heard)
        return decision, heard

    async def _decide_once(
        self, backup: Backup, raw: bytes
    ) -> tuple[Restore | CreateFresh | Halt, int]:
        found = await self.find_services()
        replies = await self.client.get_all(found.services)
        unheard = len(found.silent) + max(0, self.services - len(found.services))
        escrow = sum_up([*replies.values()], lambda key: _open(key, raw), unheard=unheard)
        if backup is Backup.ABSENT and any(c.opened for c in escrow.candidates):
            # A first start that got as far as escrow: what it wrote aside is the backup.
            backup = Backup.PRESENT
        decision = decide(backup, escrow, forget_state=self.forget_state)
        if isinstance(decision, Halt) and backup is Backup.ABSENT and raw:
            told = "a first start was interrupted, and nobody was served by it; "
            decision = replace(decision, reason=told + decision.reason)
        return decision, escrow.answered

    async def _restore(self, decision: Restore, raw: bytes, heard: int) -> Unlocked:
        inside, head = unseal_untrusted(decision.key, raw)
        split = inside.split
        if split.threshold == 1 and heard >= 3:
            # Enough services have come for none of them to know the key.
            split = make_split(decision.key, heard)
        again = Sealed(inside.identity, split, head.number + 1)
        sealed = seal(decision.key, again)
        write_whole(self.path, sealed)
        keeper = self._keeper(decision.key, split, sealed, again.number)
        await self._make_safe(keeper)
        return Unlocked(inside.identity, keeper)

    async def _create(self, heard: int, *, forgetting: bool) -> Unlocked:
        key = DiskKey.generate()
        fresh = Sealed(SecretKey.generate(), make_split(key, heard), 1)
        sealed = seal(key, fresh)
        write_whole(self._aside, sealed)
        keeper = self._keeper(key, fresh.split, sealed, fresh.number, forget=forgetting)
        await self._make_safe(keeper, is_fresh=True)
        self._aside.rename(self.path)
        return Unlocked(fresh.identity, keeper)

    def _keeper(
        self, key: DiskKey, split: Split, sealed: bytes, number: int, *, forget: bool = False
    ) -> Keeper:
        head = Head(number, digest_of(sealed))
        return Keeper(self.client, self.find_services, key, split, head, forget=forget)

    async def _make_safe(self, keeper: Keeper, *, is_fresh: bool = False) -> None:
        """Nobody is served while our key is in this memory alone, or while a service that was not heard
        before turns out to hold another state of ours."""
        done: Refreshed | None = None
        waits = _waits()
        with trio.move_on_after(self.halt_after_s):
            while True:
                done = await keeper.refresh()
                if done.ahead or (is_fresh and done.conflicts):
                    raise Halted(f"a service holds another state of ours: {_why_unsafe(done)}")
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
    wait_s = RETRY_FIRST_S
    while True:
        yield wait_s
        wait_s = min(wait_s * 2, RETRY_MOST_S)


def _read_backup(path: Path, aside: Path) -> tuple[Backup, bytes]:
    try:
        if not path.exists() and aside.exists():
            # Worth something only if escrow has the key to it.
            return Backup.ABSENT, read_bounded(aside, MAX_BYTES)
        return Backup.PRESENT, read_bounded(path, MAX_BYTES)
    except FileNotFoundError:
        return Backup.ABSENT, b""
    except OSError as error:
        log.warning("the backup cannot be read", reason=str(error))
        return Backup.UNKNOWN, b""


def _open(key: DiskKey, raw: bytes) -> Head | None:
    try:
        return unseal_untrusted(key, raw)[1]
    except BadSeal:
        return None
