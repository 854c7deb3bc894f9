"""The data plane of `tun`: a process per direction that does nothing but blocking system calls.

One read moves up to 64 KiB, so Python is not what costs; the two directions of one process did cost, by
passing the interpreter's lock back and forth (docs/performance.md). `netstack.planes.link` starts these processes
and ends them; a pump ends by itself with one line on standard output that says why.

outbound: the TUN device -> frames on the stream. Standard input closed means: drain and half-close.
inbound:  frames on the stream -> checked -> the TUN device.
"""

import errno
import json
import os
import select
import signal
import socket
import sys
from dataclasses import asdict, dataclass

from netstack.packets.coalesce import MOST_SIZE, Coalescer
from netstack.packets.fastpath import Judge, make_judge
from netstack.packets.framing import HEADER, MAX_PAYLOAD, PACKET, PING_FRAME, next_frame
from netstack.packets.packet import Malformed
from netstack.packets.policy import Guard, Rules
from netstack.planes import counters

BATCH_BYTES = 256 * 1024
# Every so many packets that came alone, we look whether another waits behind.
PROBE = 16
_ROOM = MAX_PAYLOAD + HEADER.size
# The kernel drops this packet: its offload header, the device being down, no memory. Counted, not fatal.
_KERNEL_DROPS = frozenset(
    {errno.EINVAL, errno.EIO, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.ENETDOWN}
)
TUN_GONE = "the TUN device is gone"


class Ended(Exception):
    """The pump's work is over; the message says why."""


@dataclass(frozen=True)
class Job:
    """What a pump is told on its command line. File descriptors are inherited."""

    direction: str
    tun_fd: int
    stream_fd: int
    counters_fd: int
    heartbeat_s: float
    rules: Rules
    # The peer's kernel takes UDP super-packets.
    coalesce: bool = False

    def command(self) -> list[str]:
        """How to start it."""
        return [sys.executable, "-m", "netstack.planes.pump", json.dumps(asdict(self))]

    @property
    def inherited(self) -> tuple[int, ...]:
        """What it must be given."""
        return (self.tun_fd, self.stream_fd, self.counters_fd)


def outbound(job: Job, stream: socket.socket, words: memoryview) -> None:
    """Raises `Ended`, OSError."""
    buffer = memoryview(bytearray(BATCH_BYTES + _ROOM))
    coalescer = Coalescer(buffer)
    most_small = MOST_SIZE if job.coalesce else 0
    poller = select.poll()
    poller.register(job.tun_fd, select.POLLIN)
    poller.register(sys.stdin.fileno(), select.POLLIN)
    heartbeat_ms = int(job.heartbeat_s * 1000)
    draining = False
    rounds = packets = 0
    while True:
        rounds += 1
        # Where packets come one by one, asking for a second in vain would cost as much again.
        most_bytes = 1 if packets == 1 and rounds % PROBE else BATCH_BYTES
        size, packets = _fill(job.tun_fd, buffer, coalescer, most_small, most_bytes)
        if size:
            stream.sendall(buffer[:size])
            words[counters.PACKETS] += packets
            words[counters.BYTES] += size
        elif draining:
            stream.shutdown(socket.SHUT_WR)
            raise Ended("drained")
        if size < BATCH_BYTES:  # else more waits for sure, and asking would cost a system call
            ready = poller.poll(heartbeat_ms)
            if not ready:
                stream.sendall(PING_FRAME)
            else:
                draining = len(ready) > 1 or ready[0][0] != job.tun_fd


def _fill(
    tun_fd: int, view: memoryview, coalescer: Coalescer, most_small: int, most_bytes: int
) -> tuple[int, int]:
    """Frames of all packets that wait at the device, up to a batch: bytes and packets."""
    at = packets = 0
    readv, pack, add = os.readv, HEADER.pack_into, coalescer.add
    try:
        while at < most_bytes:
            size = readv(tun_fd, (view[at + 4 : at + _ROOM],))
            packets += 1
            if size < most_small:
                at = add(at, size)
            else:
                coalescer.close()
                pack(view, at, size)  # a packet's kind is 0
                at += size + 4
    except BlockingIOError:
        pass
    except OSError as error:
        # EINVAL: one packet whose offloads the kernel could not put into words.
        if error.errno != errno.EINVAL:
            raise Ended(f"{TUN_GONE}: {error.strerror}") from error
    coalescer.close()
    return at, packets


def inbound(job: Job, stream: socket.socket, words: memoryview) -> None:
    """Raises `Ended`, `Malformed`, OSError."""
    judge = make_judge(Guard(job.rules))
    buffer = bytearray(BATCH_BYTES + _ROOM)
    view = memoryview(buffer)
    have = 0
    while True:
        received = stream.recv_into(view[have:])
        if not received:
            raise Ended("the peer closed")
        words[counters.BYTES] += received
        have += received
        used = _deliver(job.tun_fd, judge, view, have, words)
        if used:
            buffer[: have - used] = view[used:have]
            have -= used


def _deliver(tun_fd: int, judge: Judge, view: memoryview, have: int, words: memoryview) -> int:
    """All whole frames, in order. Returns how many bytes they were."""
    at = 0
    while (frame := next_frame(view, at, have)) is not None:
        kind, start, at = frame
        if kind != PACKET:
            continue
        verdict = judge(view, start, at)
        if verdict:
            words[counters.DROPPED + verdict] += 1
            continue
        try:
            os.write(tun_fd, view[start:at])
            words[counters.PACKETS] += 1
        except OSError as error:
            if error.errno not in _KERNEL_DROPS:
                raise Ended(f"{TUN_GONE}: {error.strerror}") from error
            words[counters.REFUSED] += 1
    return at


def run(job: Job) -> str:
    """Pump until the end. Returns why it came."""
    stream = socket.socket(fileno=job.stream_fd)
    words = counters.attach(job.counters_fd).words
    try:
        (outbound if job.direction == "outbound" else inbound)(job, stream, words)
    except Ended as end:
        return str(end)
    except Malformed as error:
        return f"malformed: {error}"
    except BlockingIOError:
        return "the peer is silent" if job.direction == "inbound" else "the peer takes nothing"
    except OSError as error:
        return f"stream: {error.strerror}"
    raise AssertionError("a pump never returns")


def main() -> None:
    """``python -m netstack.planes.pump <job as JSON>``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Woken, we let whoever fills the queue go on: half the context switches, and larger batches. On an
    # idle processor nothing is later for it.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    told = json.loads(sys.argv[1])
    rules = Rules(**{name: tuple(each) for name, each in told.pop("rules").items()})
    reason = run(Job(**told, rules=rules))
    sys.stdout.write(reason)


if __name__ == "__main__":
    main()
