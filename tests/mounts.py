"""Mounts of a test below its own folder: which there are, and away with them."""

import subprocess
import time
from pathlib import Path

BUSY_S = 5  # a loop device lets go of its image a moment after the last mount


def mounts_below(folder: Path) -> list[str]:
    """Newest first, as they can be unmounted."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [point for point in reversed(points) if Path(point).is_relative_to(folder)]


def unmount_below(folder: Path) -> None:
    """All of them; what is busy for longer than a loop device takes to end stays, and is a fault of the test."""
    give_up = time.monotonic() + BUSY_S
    while (left := mounts_below(folder)) and time.monotonic() < give_up:
        for point in left:
            subprocess.run(["umount", point], check=False, capture_output=True)
        time.sleep(0.02)
