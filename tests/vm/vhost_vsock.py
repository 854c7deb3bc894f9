"""virtio-vsock for a QEMU guest, in user space: the device's other half, as a vhost-user backend.

    vhost_vsock.py SOCKET BASE CID [GUEST_PORT=PATH ...]

What the guest connects to at port P of its host becomes a connection to the Unix socket ``BASE_P``; a
connection to PATH becomes one to the guest's GUEST_PORT. virtio 1.2 sections 2.7 (split rings) and 5.10
(vsock), QEMU docs/interop/vhost-user.rst. For tests: it trusts its guest.
"""

import array
import contextlib
import mmap
import os
import selectors
import socket
import struct
import sys
from collections import deque
from dataclasses import dataclass, field

MESSAGE = struct.Struct("<III")
# src_cid dst_cid src_port dst_port len type op flags buf_alloc fwd_cnt
PACKET = struct.Struct("<QQIIIHHIII")
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
RECEIVE, SEND = 1, 2  # flags of SHUTDOWN: what its sender will not do any more
STREAM = 1
PARENT = 3  # what an enclave knows its parent by
BUFFER = 256 * 1024
CHUNK = 64 * 1024
RX, TX = 0, 1
VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30
MQ, REPLY_ACK, CONFIG = 1 << 0, 1 << 3, 1 << 9
NEXT, WRITE, INDIRECT = 1, 2, 4
WRAP = 0xFFFF_FFFF


class Memory:
    """The guest's, mapped here. Ring addresses come as QEMU's virtual ones, buffers as the guest's."""

    def __init__(self):
        self._regions = []

    def set(self, regions):
        for *_, where in self._regions:
            where.close()
        self._regions = []
        for (guest, size, user, offset), fd in regions:
            self._regions.append((guest, user, size, offset, mmap.mmap(fd, size + offset)))
            os.close(fd)

    def guest(self, address):
        return self._find(0, address)

    def user(self, address):
        return self._find(1, address)

    def _find(self, column, address):
        for region in self._regions:
            size, offset, where = region[2:]
            if region[column] <= address < region[column] + size:
                return where, address - region[column] + offset
        raise ValueError(f"no memory at {address:#x}")


@dataclass
class Ring:
    """A split virtqueue."""

    size: int = 0
    descriptors: tuple = ()
    available: tuple = ()
    used: tuple = ()
    seen: int = 0
    kick: int = -1
    call: int = -1
    enabled: bool = False

    def pop(self, memory):
        """The next chain: its head, and segments as (memory, offset, length, writable). None: empty."""
        if not (self.enabled and self.used):
            return None
        where, at = self.available
        if struct.unpack_from("<H", where, at + 2)[0] == self.seen & 0xFFFF:
            return None
        (head,) = struct.unpack_from("<H", where, at + 4 + 2 * (self.seen % self.size))
        self.seen += 1
        return head, self._chain(memory, self.descriptors, head)

    def _chain(self, memory, table, index):
        segments = []
        while True:
            where, at = table
            address, length, flags, following = struct.unpack_from("<QIHH", where, at + 16 * index)
            if flags & INDIRECT:
                return self._chain(memory, memory.guest(address), 0)
            segments.append((*memory.guest(address), length, bool(flags & WRITE)))
            if not flags & NEXT:
                return segments
            index = following

    def push(self, head, length):
        where, at = self.used
        (index,) = struct.unpack_from("<H", where, at + 2)
        struct.pack_into("<II", where, at + 4 + 8 * (index % self.size), head, length)
        struct.pack_into("<H", where, at + 2, (index + 1) & 0xFFFF)

    def interrupt(self):
        if self.call >= 0:
            os.write(self.call, struct.pack("=Q", 1))


@dataclass
class Connection:
    """Between a Unix socket here and a port of the guest's."""

    sock: socket.socket
    here: int
    there: int
    cid: int
    open: bool
    guest_room: int = 0
    guest_taken: int = 0
    sent: int = 0
    taken: int = 0
    told: int = 0
    waiting: bytearray = field(default_factory=bytearray)
    guest_done: bool = False
    host_done: bool = False

    def address(self):
        return self.cid, self.here, self.there

    def credit(self):
        """Bytes that the guest still has room for."""
        return max(0, self.guest_room - ((self.sent - self.guest_taken) & WRAP))


class Backend:
    """One device for one guest; `run` returns when QEMU is gone."""

    def __init__(self, path, base, cid, guest_ports):
        self._base, self._cid = base, cid
        self._selector = selectors.DefaultSelector()
        self._memory = Memory()
        self._rings = (Ring(), Ring())
        self._connections = {}
        self._to_guest = deque()
        self._next_port = 1 << 20
        self._gone = False
        self._listen(path, self._accept_qemu)
        for port, place in guest_ports:
            self._listen(place, lambda sock, port=port: self._connect_guest(sock, port))

    def _listen(self, path, accept):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(64)
        self._watch(listener, selectors.EVENT_READ, lambda _: accept(listener.accept()[0]))

    def _watch(self, what, events, do):
        with contextlib.suppress(KeyError):
            self._selector.unregister(what)
        if events:
            self._selector.register(what, events, do)

    def run(self):
        while not self._gone:
            for key, events in self._selector.select():
                key.data(events)

    # --- QEMU

    def _accept_qemu(self, sock):
        self._watch(sock, selectors.EVENT_READ, lambda _: self._message(sock))

    def _message(self, sock):
        head, ancillary, _, _ = sock.recvmsg(MESSAGE.size, socket.CMSG_SPACE(8 * 4))
        if len(head) < MESSAGE.size:
            self._gone = True
            return
        kind, flags, size = MESSAGE.unpack(head)
        body = sock.recv(size, socket.MSG_WAITALL) if size else b""
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data[: len(data) // 4 * 4])
        reply = self._answer(kind, body, list(fds))
        if reply is None and flags & 8:
            reply = bytes(8)
        if reply is not None:
            sock.sendall(MESSAGE.pack(kind, 5, len(reply)) + reply)

    def _answer(self, kind, body, fds):
        """vhost-user front-end messages, by number."""
        if kind in (1, 15, 17):  # GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM
            value = {1: VERSION_1 | PROTOCOL_FEATURES, 15: MQ | REPLY_ACK | CONFIG, 17: 2}[kind]
            return struct.pack("<Q", value)
        if kind == 5:  # SET_MEM_TABLE
            (count,) = struct.unpack_from("<I", body)
            regions = [struct.unpack_from("<QQQQ", body, 8 + 32 * n) for n in range(count)]
            self._memory.set(list(zip(regions, fds, strict=True)))
        elif kind == 24:  # GET_CONFIG: the guest's CID
            offset, size, flags = struct.unpack_from("<III", body)
            found = struct.pack("<Q", self._cid)[offset : offset + size]
            return struct.pack("<III", offset, size, flags) + found.ljust(size, b"\0")
        elif kind in (8, 9, 10, 11, 12, 13, 14, 18):
            return self._set_ring(kind, body, fds)
        return None

    def _set_ring(self, kind, body, fds):
        number = struct.unpack_from("<I", body)[0] & 0xFF
        if number > TX:  # the event queue: no migration, no events
            for fd in fds:
                os.close(fd)
            return struct.pack("<II", number, 0) if kind == 11 else None
        ring = self._rings[number]
        if kind == 8:
            ring.size = struct.unpack_from("<I", body, 4)[0]
        elif kind == 9:
            _, _, table, used, available, _ = struct.unpack("<IIQQQQ", body)
            ring.descriptors, ring.used, ring.available = map(
                self._memory.user, (table, used, available)
            )
        elif kind == 10:
            ring.seen = struct.unpack_from("<I", body, 4)[0]
        elif kind == 11:  # GET_VRING_BASE stops it
            ring.enabled = False
            return struct.pack("<II", number, ring.seen & 0xFFFF)
        elif kind == 12:
            ring.kick = fds[0]
            os.set_blocking(ring.kick, False)
            self._watch(ring.kick, selectors.EVENT_READ, lambda _: self._kicked(ring, number))
            ring.enabled = True
        elif kind == 13:
            ring.call = fds[0] if fds else -1
        elif kind == 18:
            ring.enabled = bool(struct.unpack_from("<I", body, 4)[0])
        return None

    def _kicked(self, ring, number):
        with contextlib.suppress(BlockingIOError):
            os.read(ring.kick, 8)
        if number == TX:
            self._from_guest(ring)
        self._flush()

    # --- from the guest

    def _from_guest(self, ring):
        some = False
        while (chain := ring.pop(self._memory)) is not None:
            head, segments = chain
            data = b"".join(
                where[at : at + size] for where, at, size, writable in segments if not writable
            )
            ring.push(head, 0)
            some = True
            self._packet(PACKET.unpack_from(data), data[PACKET.size :])
        if some:
            ring.interrupt()

    def _packet(self, header, data):
        _, cid, there, here, length, kind, op, flags, room, taken = header
        connection = self._connections.get((here, there))
        if op == REQUEST and kind == STREAM:
            connection = self._connect_host(cid, here, there)
        if connection is None:
            if op != RST:
                self._queue((cid, here, there), RST)
            return
        connection.guest_room, connection.guest_taken = room, taken
        if op == RST:
            self._close(connection)
            return
        if op == RESPONSE:
            connection.open = True
        elif op == RW:
            connection.waiting += data[:length]
        elif op == CREDIT_REQUEST:
            self._say(connection, CREDIT_UPDATE)
        elif op == SHUTDOWN:
            connection.guest_done |= bool(flags & SEND)
            if flags & RECEIVE:
                connection.host_done = True
        self._to_host(connection)

    def _connect_host(self, cid, here, there):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(f"{self._base}_{here}")
        except OSError:
            sock.close()
            return None
        connection = self._add(sock, (cid, here, there), is_open=True)
        self._say(connection, RESPONSE)
        return connection

    def _to_host(self, connection):
        try:
            while connection.waiting:
                size = connection.sock.send(connection.waiting)
                del connection.waiting[:size]
                connection.taken += size
        except BlockingIOError:
            pass
        except OSError:
            self._reset(connection)
            return
        if connection.taken - connection.told > BUFFER // 4:
            self._say(connection, CREDIT_UPDATE)
        if connection.guest_done and not connection.waiting:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR)
            if connection.host_done:
                self._reset(connection)
                return
        self._interest(connection)

    # --- from this machine

    def _connect_guest(self, sock, port):
        self._next_port += 1
        self._say(self._add(sock, (PARENT, self._next_port, port), is_open=False), REQUEST)

    def _add(self, sock, address, is_open):
        cid, here, there = address
        sock.setblocking(False)
        connection = self._connections[here, there] = Connection(sock, here, there, cid, is_open)
        self._interest(connection)
        return connection

    def _interest(self, connection):
        reads = (
            connection.open
            and not connection.host_done
            and connection.credit()
            and len(self._to_guest) < 64
        )
        events = (selectors.EVENT_READ if reads else 0) | (
            selectors.EVENT_WRITE if connection.waiting else 0
        )
        self._watch(connection.sock, events, lambda ready: self._ready(connection, ready))

    def _ready(self, connection, ready):
        # What came before it in the same batch may have closed it.
        if ready & selectors.EVENT_READ and self._is_there(connection):
            self._from_host(connection)
        if ready & selectors.EVENT_WRITE and self._is_there(connection):
            self._to_host(connection)

    def _is_there(self, connection):
        return self._connections.get((connection.here, connection.there)) is connection

    def _from_host(self, connection):
        try:
            data = connection.sock.recv(min(connection.credit(), CHUNK))
        except BlockingIOError:
            return
        except OSError:
            self._reset(connection)
            return
        if data:
            connection.sent += len(data)
            self._say(connection, RW, data)
        else:
            connection.host_done = True
            self._say(connection, SHUTDOWN, flags=SEND)
            if connection.guest_done and not connection.waiting:
                self._reset(connection)
                return
        self._interest(connection)

    def _reset(self, connection):
        self._queue(connection.address(), RST)
        self._close(connection)

    def _close(self, connection):
        self._watch(connection.sock, 0, None)
        connection.sock.close()
        self._connections.pop((connection.here, connection.there), None)

    # --- to the guest

    def _say(self, connection, op, data=b"", flags=0):
        connection.told = connection.taken
        self._queue(connection.address(), op, data, flags, connection.taken)

    def _queue(self, address, op, data=b"", flags=0, taken=0):
        self._to_guest.append((address, op, data, flags, taken & WRAP))
        self._flush()

    def _flush(self):
        ring, some = self._rings[RX], False
        full = len(self._to_guest) >= 64
        while self._to_guest and (chain := ring.pop(self._memory)) is not None:
            head, segments = chain
            address, op, data, flags, taken = self._to_guest.popleft()
            room = sum(size for _, _, size, writable in segments if writable) - PACKET.size
            if len(data) > room:
                self._to_guest.appendleft((address, op, data[room:], flags, taken))
                data = data[:room]
            cid, here, there = address
            header = PACKET.pack(
                cid, self._cid, here, there, len(data), STREAM, op, flags, BUFFER, taken
            )
            ring.push(head, _scatter(header + data, segments))
            some = True
        if some:
            ring.interrupt()
        if full and len(self._to_guest) < 64:
            for connection in list(self._connections.values()):
                self._interest(connection)


def _scatter(data, segments):
    at = 0
    for where, offset, size, writable in segments:
        if writable:
            piece = data[at : at + size]
            where[offset : offset + len(piece)] = piece
            at += len(piece)
    return at


def main():
    path, base, cid, *ports = sys.argv[1:]
    pairs = [(int(port), place) for port, _, place in (each.partition("=") for each in ports)]
    Backend(path, base, int(cid), pairs).run()


if __name__ == "__main__":
    main()
