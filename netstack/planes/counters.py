"""Numbers that a pump writes and its supervisor reads: 64-bit words in shared memory."""

import mmap
import os
from dataclasses import dataclass

from netstack.packets.policy import Verdict

# Each verdict but PASS counts what was dropped for it.
NAMES = ("packets", "bytes", "refused_by_kernel", *(v.name.lower() for v in Verdict if v))
PACKETS, BYTES, REFUSED = 0, 1, 2
DROPPED = 2  # + verdict
_SIZE = 8 * len(NAMES)


@dataclass(frozen=True)
class Counters:
    """``words`` is what is shared; one process writes, others read."""

    fd: int
    words: memoryview

    def read(self) -> dict[str, int]:
        """By name."""
        return dict(zip(NAMES, self.words, strict=True))


def create(name: str) -> Counters:
    """New ones, all zero."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, _SIZE)
    return attach(fd)


def attach(fd: int) -> Counters:
    """Those that another process made."""
    return Counters(fd, memoryview(mmap.mmap(fd, _SIZE)).cast("Q"))
