"""Which checkpoints the files of this machine contain: whether they may go on from the one that escrow names.

A process may die, and the machine with its files live on: then these are newer than any checkpoint, and are kept. But
meanwhile another one of us may have gone on from the same checkpoint elsewhere, and then these are a branch that
ended: what they say was paid may have been spent there. So the heads that were made from these files stand beside them,
each before anybody else hears of it.
"""

from pathlib import Path

import structlog

from bot.files import read_bounded, write_whole
from keycrux_client.shares import Head

log = structlog.get_logger()
# Heads that were offered to escrow since the last one that it took; of more, the oldest would not be found again.
MOST_HEADS = 256
_MOST_BYTES = MOST_HEADS * 130


class NoLine:
    """Where no files outlive a process, or they are on a disk of our own and no checkpoint is ever put back."""

    has_files = False

    def contains(self, _: Head) -> bool:
        return False

    def note(self, _: Head) -> None:
        pass

    def settle(self, _: Head) -> None:
        pass


class Line:
    """``books``: without this file there are no files yet; it is the last one to come back from a checkpoint."""

    def __init__(self, books: Path) -> None:
        self._books, self._path = books, books.with_name("line")
        self._digests = self._read()

    @property
    def has_files(self) -> bool:
        return self._books.exists()

    def contains(self, head: Head) -> bool:
        """Whether that checkpoint was made from these files."""
        return head.digest in self._digests

    def note(self, head: Head) -> None:
        """One more was made from them; to be called before escrow is told. Raises `OSError`."""
        if head.digest not in self._digests:
            self._write([*self._digests, head.digest][-MOST_HEADS:])

    def settle(self, head: Head) -> None:
        """Escrow knows this one as the newest: an older one is never asked for again. Raises `OSError`."""
        if self._digests != [head.digest]:
            self._write([head.digest])

    def _write(self, digests: list[str]) -> None:
        write_whole(self._path, "\n".join(digests).encode())
        self._digests = digests

    def _read(self) -> list[str]:
        try:
            return read_bounded(self._path, _MOST_BYTES).decode("ascii", "replace").split()
        except FileNotFoundError:
            return []
        except OSError as error:
            log.warning("whose files these are cannot be read", reason=str(error))
            return []
