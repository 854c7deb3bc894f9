"""A process of ours that dies with us.

Started from trio's own thread, because the kernel ties the death signal to the thread that made the
process: in a worker thread it would come when that thread is done.
"""

import os
import subprocess
from collections.abc import Sequence

import trio


class Child:
    """Standard input stays open until `close_input`, and its output is kept for `wait`."""

    def __init__(self, command: Sequence[str], inherited: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=inherited,
        )
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError:
            self._process.kill()
            self._process.wait()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def wait(self) -> tuple[int, str]:
        """Exit status and what it wrote, once it has ended. Only for those that write little."""
        await trio.lowlevel.wait_readable(self._pidfd)
        status = self._process.wait()
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        return status, self._process.stdout.read().decode(errors="replace")

    def close_input(self) -> None:
        """What a child of ours takes as: finish."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        self._process.stdin.close()

    def end(self) -> None:
        """At once."""
        self._process.kill()
        self._process.wait()
        os.close(self._pidfd)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
