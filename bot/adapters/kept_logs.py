"""What a container wrote before it was made anew: a file for each, bounded, gone with the container."""

from pathlib import Path

MAX_BYTES = 256 * 1024


class KeptLogs:
    """``folder`` None: nothing is kept. Blocking; called in worker threads."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def keep(self, pubkey: str, log: bytes) -> None:
        """Append the newest of a log, and drop the oldest of what was kept."""
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path = self._folder / pubkey
            path.touch(mode=0o600, exist_ok=True)
            path.write_bytes((self.kept(pubkey) + log)[-MAX_BYTES:])

    def kept(self, pubkey: str) -> bytes:
        """Empty when there is none."""
        try:
            return (self._folder / pubkey).read_bytes() if self._folder is not None else b""
        except FileNotFoundError:
            return b""

    def forget(self, pubkey: str) -> None:
        """The container is gone."""
        if self._folder is not None:
            (self._folder / pubkey).unlink(missing_ok=True)
