"""Which container, and who may do what to it. Authorise before acting."""

from handlers.context import Caller
from handlers.domain.lifecycle import State
from handlers.errors import Refusal, not_found, restricted
from handlers.records import Container
from handlers.tables import Tx


def owned(tx: Tx, caller: Caller, pubkey: str) -> Container | Refusal:
    """The container, if the caller is its admin."""
    row = tx.containers.find(pubkey)
    if row is None:
        return not_found("there is no such container here")
    if row.admin != caller.pubkey:
        return restricted("only the container's admin may do that")
    return row


def payable(tx: Tx, pubkey: str) -> Container | Refusal:
    """The container, if it still takes payments."""
    row = tx.containers.find(pubkey)
    if row is None or row.state is State.STOPPED:
        return not_found("there is no such container here")
    return row


def known(tx: Tx, pubkey: str) -> Container | None:
    """The container, also when it is over: its wallet may still be paid."""
    return tx.containers.find(pubkey) or tx.archive.find(pubkey)
