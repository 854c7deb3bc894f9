"""Restore, begin afresh, or halt: one pure decision over what the backup and the services say.

| backup | escrow | decision |
|---|---|---|
| unknown | any | halt, retry |
| present | no service answers | halt, retry |
| present | no key that opens it | halt, retry |
| present | a key opens it, but it is older than, or differs from, what escrow knows | halt |
| present | a key opens it, and it is the newest that anybody knows | restore |
| absent | not every service and relay that should be there answers | halt, retry |
| absent | a service holds a key for us | halt, unless the state is to be forgotten |
| absent | all answer and hold none | create afresh |

The backup comes from the parent, who may hide it, or hand over an old one; services may be unreachable
because the parent wills it. So nothing is created, and no key is replaced, while anything is unsure.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from keycrux_client.protocol import GetReply, Got
from keycrux_client.shares import (
    BadStored,
    DiskKey,
    Head,
    Stored,
    decode_untrusted,
    gather,
)


class Backup(Enum):
    """What the parent hands over. UNKNOWN: it cannot be read, or the parent does not say."""

    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Candidate:
    """A key that escrow yielded. ``opened``: the head of the backup, if the key opens it. ``newest``: the
    newest head that was written to escrow with this very key."""

    key: DiskKey
    opened: Head | None
    newest: Head | None


@dataclass(frozen=True)
class Escrow:
    """What the services said. ``asked`` counts those that should have been heard as well."""

    asked: int
    answered: int
    held: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Restore:
    """Open the backup with this key."""

    key: DiskKey
    head: Head


@dataclass(frozen=True)
class CreateFresh:
    """There is nothing to restore. ``forgetting``: a service holds something, and the operator gave it up."""

    forgetting: bool = False


@dataclass(frozen=True)
class Halt:
    """Do not go on. ``retry``: it may be otherwise in a while."""

    reason: str
    retry: bool


Decision = Restore | CreateFresh | Halt


def decide(backup: Backup, escrow: Escrow, *, forget_state: bool = False) -> Decision:
    """The table above, row by row."""
    if backup is Backup.UNKNOWN:
        return Halt("it is unknown whether there is a backup", retry=True)
    if escrow.answered == 0:
        return Halt("no escrow service that can be believed answers", retry=True)
    if backup is Backup.ABSENT:
        return _without_backup(escrow, forget_state=forget_state)
    return _with_backup(escrow)


def _with_backup(escrow: Escrow) -> Decision:
    opening = [(c, c.opened) for c in escrow.candidates if c.opened is not None]
    if not opening:
        known = [c.newest for c in escrow.candidates if c.newest is not None]
        if known:
            text = f"escrow knows of number {max(known).number}, which is not handed to us"
            return Halt(f"{text}: an old state, or another one's, is all there is", retry=True)
        held = "hold none for this code" if escrow.held == 0 else "hold none that opens the backup"
        return Halt(f"the escrow services that answer {held}", retry=True)
    candidate, head = max(opening, key=lambda pair: pair[1])
    newest = candidate.newest
    if newest is not None and newest.number > head.number:
        text = f"the backup is number {head.number}, but escrow knows of {newest.number}"
        return Halt(f"{text}: an old state was handed to us", retry=False)
    if newest is not None and newest.number == head.number and newest.digest != head.digest:
        return Halt(f"the backup is another number {head.number} than escrow knows", retry=False)
    return Restore(candidate.key, head)


def _without_backup(escrow: Escrow, *, forget_state: bool) -> Decision:
    if forget_state:
        return CreateFresh(forgetting=escrow.held > 0)
    if escrow.held:
        text = "there is no backup, but escrow holds a key for us: the state is missing"
        return Halt(f"{text}; to give it up, order --forget-state", retry=False)
    if escrow.answered < escrow.asked:
        silent = escrow.asked - escrow.answered
        text = f"{silent} escrow services or their relays do not answer"
        return Halt(f"{text}; they may hold our key", retry=True)
    return CreateFresh()


def sum_up(
    replies: Sequence[GetReply], open_backup: Callable[[DiskKey], Head | None], *, unheard: int = 0
) -> Escrow:
    """Replies as the facts that `decide` wants. ``open_backup`` tries one key on the backup; ``unheard``:
    services that should be there and were not found, and relays that did not say which there are."""
    held = [reply for reply in replies if reply.got is Got.HELD]
    values = values_in(held)
    return Escrow(
        asked=len(replies) + unheard,
        answered=sum(reply.got is not Got.SILENT for reply in replies),
        held=len(held),
        candidates=tuple(
            Candidate(found.key, open_backup(found.key), found.newest) for found in gather(values)
        ),
    )


def values_in(replies: Iterable[GetReply]) -> list[Stored]:
    """What we wrote, of all that services hold."""
    return [value for reply in replies if (value := stored_in(reply)) is not None]


def stored_in(reply: GetReply) -> Stored | None:
    """The value that a service holds; None when it holds none, or something that we never wrote."""
    if reply.got is not Got.HELD:
        return None
    try:
        return decode_untrusted(reply.data)
    except BadStored:
        return None
