"""Ports of the bridge are isolated: not even an ARP request of one container comes to another's.

A port is isolated as soon as the kernel says that it is there, which is long before the container's first process
runs, and once more before a start is reported. Spoken is rtnetlink (rtnetlink(7), linux/if_link.h), in the network
namespace of whoever listens at the engine's socket.
"""

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from ctypes import CDLL, get_errno
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from bot.adapters.engine.names import EngineUnusable

log = structlog.get_logger()
T = TypeVar("T")
_NEWLINK, _GETLINK, _SETLINK, _ERROR, _DONE = 16, 18, 19, 2, 3
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_AF_BRIDGE, _GROUP_LINK, _NESTED = 7, 1, 0x8000
_MASTER, _PROTINFO, _BRPORT_ISOLATED = 10, 12, 33
# nlmsghdr: length, type, flags, sequence, port. ifinfomsg: family, type, index, flags, change. rtattr: length, type.
_HEADER, _LINK, _ATTRIBUTE = (
    struct.Struct("=IHHII"),
    struct.Struct("=BxHiII"),
    struct.Struct("=HH"),
)
_NUMBER = struct.Struct("=i")
_CLONE_NEWNET = 0x40000000
_BUFFER_BYTES, _MESSAGE_BYTES = 1 << 20, 1 << 16
_SENDS_S = 10


@dataclass(frozen=True)
class Link:
    """A network device, as far as it concerns us. ``bridge``: the device of which it is a port, or 0."""

    index: int
    bridge: int
    isolated: bool


class Isolation:
    """For the bridge called ``device``. Raises `EngineUnusable` where its ports cannot be set."""

    def __init__(self, socket_path: str, device: str) -> None:
        self._one = threading.Lock()
        self._sequence = 0
        try:
            pid = _listener(socket_path)
            self._bridge, (self._asking, self._hearing) = _in_network_of(
                pid, lambda: (socket.if_nametoindex(device), _two_sockets())
            )
            self.isolate_all()
        except OSError as error:
            raise EngineUnusable(
                f"the ports of {device} cannot be isolated ({error});"
                " this needs root, and the engine on this machine"
            ) from error

    def close(self) -> None:
        self._asking.close()
        self._hearing.close()

    async def watch(self) -> None:
        """Isolate ports as they come. Until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._hearing)
            try:
                await trio.to_thread.run_sync(self._isolate_new)
            except OSError:
                log.exception("a port of the bridge is not isolated")

    def isolate_all(self) -> None:
        """Every port that there is. Raises OSError. Blocking."""
        for link in self._links():
            self._isolate(link)

    def _isolate_new(self) -> None:
        try:
            for link in _links_in(self._hearing.recv(_MESSAGE_BYTES, socket.MSG_DONTWAIT)):
                self._isolate(link)
        except BlockingIOError:
            pass
        except OSError:
            # More came than the buffer holds, or a port left again in between: look at what is there.
            self.isolate_all()

    def _isolate(self, link: Link) -> None:
        if link.bridge != self._bridge or link.isolated:
            return
        flag = _attribute(_BRPORT_ISOLATED, b"\x01")
        body = _LINK.pack(_AF_BRIDGE, 0, link.index, 0, 0)
        try:
            self._ask(_SETLINK, _ACK, body + _attribute(_PROTINFO | _NESTED, flag))
        except OSError:
            # One that has left meanwhile is nobody's.
            if link in self._links():
                raise

    def _links(self) -> list[Link]:
        return list(_links_in(self._ask(_GETLINK, _DUMP, _LINK.pack(_AF_BRIDGE, 0, 0, 0, 0))))

    def _ask(self, kind: int, flags: int, body: bytes) -> bytes:
        """A request; all messages that answer it. Raises OSError."""
        with self._one:
            self._sequence += 1
            length = _HEADER.size + len(body)
            self._asking.send(
                _HEADER.pack(length, kind, _REQUEST | flags, self._sequence, 0) + body
            )
            answer = b""
            while not _is_whole(answer, self._sequence):
                answer += self._asking.recv(_MESSAGE_BYTES)
            return answer


def _is_whole(answer: bytes, sequence: int) -> bool:
    """Whether the last message of that answer came. Raises OSError when it is a refusal."""
    for kind, of, payload in _messages(answer):
        if of == sequence and kind == _ERROR:
            code = -_NUMBER.unpack_from(payload)[0]
            if code:
                raise OSError(code, os.strerror(code))
        if of == sequence and kind in (_ERROR, _DONE):
            return True
    return False


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence and payload of each."""
    while len(data) >= _HEADER.size:
        length, kind, _, sequence, _ = _HEADER.unpack_from(data)
        yield kind, sequence, data[_HEADER.size : length]
        data = data[_aligned(max(length, _HEADER.size)) :]


def _links_in(data: bytes) -> Iterator[Link]:
    for kind, _, payload in _messages(data):
        if kind != _NEWLINK:
            continue
        _, _, index, *_ = _LINK.unpack_from(payload)
        about = dict(_attributes(payload[_LINK.size :]))
        port = dict(_attributes(about.get(_PROTINFO, b"")))
        master = _NUMBER.unpack(about[_MASTER])[0] if _MASTER in about else 0
        yield Link(index, master, port.get(_BRPORT_ISOLATED) == b"\x01")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & ~_NESTED, data[_ATTRIBUTE.size : length]
        data = data[_aligned(max(length, _ATTRIBUTE.size)) :]


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _listener(path: str) -> int:
    """The process that listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as knock:
        knock.settimeout(_SENDS_S)
        knock.connect(path)
        pid, _, _ = struct.unpack(
            "=iII", knock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
    return int(pid)


def _two_sockets() -> tuple[socket.socket, socket.socket]:
    """One to ask, one that hears of every device that changes."""
    made = []
    for groups in (0, _GROUP_LINK):
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        sock.bind((0, groups))
        sock.settimeout(_SENDS_S if groups == 0 else 0)
        made.append(sock)
    return made[0], made[1]


def _in_network_of(pid: int, work: Callable[[], T]) -> T:
    """In a thread of its own, which ends in that namespace; what it opens stays there. Raises OSError."""
    done: list[T | OSError] = []

    def enter() -> None:
        try:
            with Path(f"/proc/{pid}/ns/net").open("rb") as space:
                if CDLL(None, use_errno=True).setns(space.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(get_errno(), os.strerror(get_errno()))
            done.append(work())
        except OSError as error:
            done.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    (result,) = done
    if isinstance(result, OSError):
        raise result
    return result
