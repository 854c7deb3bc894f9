"""Restore, begin afresh, or halt: one pure decision over what the backup and the services say.

| backup | escrow | decision |
|---|---|---|
| unknown | any | halt, retry |
| present | no service answers | halt, retry |
| present | no key that opens it | halt, retry |
| present | a key opens it, but it is older than, or differs from, what escrow knows | halt |
| present | a key opens it, and it is the newest that anybody knows | restore |
| absent | not every service answers | halt, retry |
| absent | a service holds a key for us | halt, unless the state is to be forgotten |
| absent | all answer and hold none | create afresh |

The backup comes from the parent, who may hide it, or hand over an old one; services may be unreachable
because the parent wills it. So nothing is created, and no key is replaced, while anything is unsure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from keycrux_client.protocol import GetReply, Got
from keycrux_client.shares import (
    BadStored,
    DiskKey,
    Gathered,
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
    """A key that escrow yielded. ``opened``: the head of the backup, if the key opens it."""

    key: DiskKey
    opened: Head | None
    set_ids: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Escrow:
    """What the services said. ``newest``: the newest head that any of them knows."""

    asked: int
    answered: int
    held: int
    newest: Head | None
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Restore:
    """Open the backup with this key, which these splits yielded."""

    key: DiskKey
    head: Head
    set_ids: frozenset[str] = frozenset()


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
        held = "hold none for this code" if escrow.held == 0 else "hold none that opens the backup"
        return Halt(f"the escrow services that answer {held}", retry=True)
    candidate, head = max(opening, key=lambda pair: pair[1])
    newest = escrow.newest
    if newest is not None and newest.number > head.number:
        text = f"the backup is number {head.number}, but escrow knows of {newest.number}"
        return Halt(f"{text}: an old state was handed to us", retry=False)
    if newest is not None and newest.number == head.number and newest.digest != head.digest:
        return Halt(f"the backup is another number {head.number} than escrow knows", retry=False)
    return Restore(candidate.key, head, candidate.set_ids)


def _without_backup(escrow: Escrow, *, forget_state: bool) -> Decision:
    if forget_state:
        return CreateFresh(forgetting=escrow.held > 0)
    if escrow.held:
        text = "there is no backup, but escrow holds a key for us: the state is missing"
        return Halt(f"{text}; to give it up, order --forget-state", retry=False)
    if escrow.answered < escrow.asked:
        silent = escrow.asked - escrow.answered
        return Halt(f"{silent} escrow services do not answer; they may hold our key", retry=True)
    return CreateFresh()


def sum_up(replies: Sequence[GetReply], open_backup: Callable[[DiskKey], Head | None]) -> Escrow:
    """Replies as the facts that `decide` wants. ``open_backup`` tries one key on the backup."""
    held = [reply for reply in replies if reply.got is Got.HELD]
    values = [value for reply in held if (value := _stored(reply)) is not None]
    gathered: list[Gathered] = gather(values)
    return Escrow(
        asked=len(replies),
        answered=sum(reply.got is not Got.SILENT for reply in replies),
        held=len(held),
        newest=max((value.head for value in values), default=None),
        candidates=tuple(Candidate(g.key, open_backup(g.key), g.set_ids) for g in gathered),
    )


def _stored(reply: GetReply) -> Stored | None:
    try:
        return decode_untrusted(reply.data)
    except BadStored:
        return None
