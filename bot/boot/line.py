"""Whose files lie on this machine: whether they may go on from the checkpoint that escrow names.

A process may die, and the machine with its files live on: then these are newer than any checkpoint, and are kept. But
meanwhile another one of us may have gone on from the same checkpoint elsewhere, and then these are a branch that
ended: what they say was paid may have been spent there. So files have a name, their line, and each checkpoint says from
which line it was made.
"""

import secrets
from pathlib import Path

from bot.files import read_bounded, write_whole

_BYTES = 8


def new_line() -> str:
    """For files that begin now."""
    return secrets.token_hex(_BYTES)


class UnknownLine(Exception):
    """There are files, and nothing that says whose."""


class NoLine:
    """Where no files outlive a process, or they are on a disk of our own and no checkpoint is ever put back."""

    has_files = False

    def read(self) -> str | None:
        return None

    def begin(self, _: str) -> None:
        pass


class Line:
    """``books``: without this file there are no files yet; it is the last one to come back from a checkpoint."""

    def __init__(self, books: Path) -> None:
        self._books, self._path = books, books.with_name("line")

    @property
    def has_files(self) -> bool:
        return self._books.exists()

    def read(self) -> str | None:
        """The line that begins or goes on here; None where nothing does. Raises `UnknownLine`, `OSError`."""
        try:
            line = read_bounded(self._path, 2 * _BYTES).decode("ascii", "replace")
        except FileNotFoundError:
            if self.has_files:
                raise UnknownLine from None
            return None
        if len(line) != 2 * _BYTES:
            raise UnknownLine
        return line

    def begin(self, line: str) -> None:
        """Escrow's newest checkpoint is of this line: its files may come, and no other one's. Raises `OSError`."""
        write_whole(self._path, line.encode())
