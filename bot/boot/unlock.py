"""Gets our identity back through key escrow, or makes one and puts its key there. Halts when unsure.

The order of writes, so that a crash between any two of them loses nothing:

- restored: the backup is sealed again under a higher number, then escrow learns that number, then we go on;
- fresh: the backup is written aside, escrow gets the key, the backup takes its name, then we go on. What
  lies aside counts as the backup if escrow has its key; if not, nobody was served by it.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from bot.boot.identity import write_whole
from bot.boot.sealed import BadSeal, digest_of, seal, unseal_untrusted
from keycrux_client.client import EscrowClient
from keycrux_client.discovery import Service
from keycrux_client.recovery import Backup, CreateFresh, Halt, Restore, decide, sum_up
from keycrux_client.refresh import Keeper, Refreshed
from keycrux_client.shares import DiskKey, Head
from nips.keys import SecretKey

log = structlog.get_logger()
RETRY_FIRST_S, RETRY_MOST_S = 0.5, 5.0
FindServices = Callable[[], Awaitable[Sequence[Service]]]


class Halted(Exception):
    """We must not go on; the message says why, and what would help."""


@dataclass(frozen=True)
class Unlocked:
    """Our identity, and who keeps its key alive."""

    identity: SecretKey
    keeper: Keeper


class Unlocker:
    """One boot. ``path``: the backup as the parent hands it over, and where the next one goes."""

    def __init__(
        self,
        client: EscrowClient,
        find_services: FindServices,
        path: Path,
        *,
        halt_after_s: float,
        forget_state: bool,
    ) -> None:
        self._client, self._find_services, self._path = client, find_services, path
        self._aside = path.with_name(path.name + ".fresh")
        self._halt_after_s, self._forget_state = halt_after_s, forget_state

    async def unlock(self) -> Unlocked:
        """Raises `Halted`."""
        backup, raw = _look(self._path, self._aside)
        decision = await self._decide(backup, raw)
        match decision:
            case Restore():
                return await self._restore(decision, raw)
            case CreateFresh():
                return await self._create(forgetting=decision.forgetting)
            case Halt():
                raise Halted(decision.reason)

    async def _decide(self, backup: Backup, raw: bytes) -> Restore | CreateFresh | Halt:
        """Asked again and again, while another answer is possible."""
        decision: Restore | CreateFresh | Halt = Halt("escrow was not asked yet", retry=True)
        waits = _waits()
        with trio.move_on_after(self._halt_after_s):
            while True:
                services = await self._find_services()
                replies = await self._client.get_all(services)
                escrow = sum_up([*replies.values()], lambda key: _open(key, raw))
                if backup is Backup.ABSENT and any(c.opened for c in escrow.candidates):
                    # A first start that got as far as escrow: what it wrote aside is the backup.
                    backup = Backup.PRESENT
                decision = decide(backup, escrow, forget_state=self._forget_state)
                if not isinstance(decision, Halt) or not decision.retry:
                    break
                wait_s = next(waits)
                log.warning("halted", reason=decision.reason, retry_s=wait_s)
                await trio.sleep(wait_s)
        log.info(
            "escrow",
            backup=backup.value,
            decision=type(decision).__name__,
            reason=decision.reason if isinstance(decision, Halt) else None,
        )
        return decision

    async def _restore(self, decision: Restore, raw: bytes) -> Unlocked:
        identity, head = unseal_untrusted(decision.key, raw)
        sealed = seal(decision.key, identity, head.number + 1)
        write_whole(self._path, sealed)
        keeper = self._keeper(decision.key, sealed, head.number + 1, decision.set_ids)
        await self._make_safe(keeper)
        return Unlocked(identity, keeper)

    async def _create(self, *, forgetting: bool) -> Unlocked:
        key, identity = DiskKey.generate(), SecretKey.generate()
        sealed = seal(key, identity, 1)
        write_whole(self._aside, sealed)
        keeper = self._keeper(key, sealed, 1, frozenset(), forget=forgetting)
        await self._make_safe(keeper)
        self._aside.rename(self._path)
        return Unlocked(identity, keeper)

    def _keeper(
        self,
        key: DiskKey,
        sealed: bytes,
        number: int,
        known_sets: frozenset[str],
        *,
        forget: bool = False,
    ) -> Keeper:
        head = Head(number, digest_of(sealed))
        return Keeper(
            self._client, self._find_services, key, head, known_sets=known_sets, forget=forget
        )

    async def _make_safe(self, keeper: Keeper) -> None:
        """Nobody is served while our key is in this memory alone."""
        done: Refreshed | None = None
        waits = _waits()
        with trio.move_on_after(self._halt_after_s):
            while True:
                done = await keeper.refresh()
                if done.is_safe:
                    log.info("escrow holds our key", services=list(done.stored))
                    return
                log.warning("escrow does not hold our key yet", failed=list(done.failed))
                await trio.sleep(next(waits))
        conflicts = f"; held by another key: {', '.join(done.conflicts)}" if done else ""
        raise Halted(f"no escrow service took our key{conflicts}")


def _waits() -> Iterator[float]:
    wait_s = RETRY_FIRST_S
    while True:
        yield wait_s
        wait_s = min(wait_s * 2, RETRY_MOST_S)


def _look(path: Path, aside: Path) -> tuple[Backup, bytes]:
    try:
        if not path.exists() and aside.exists():
            # Worth something only if escrow has the key to it.
            return Backup.ABSENT, aside.read_bytes()
        return Backup.PRESENT, path.read_bytes()
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
