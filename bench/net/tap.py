"""gvproxy's other half: a TAP device and its QEMU protocol (u32 big-endian length, Ethernet frame)."""

import fcntl
import os
import socket
import struct
import sys
import threading

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x2, 0x1000
LENGTH = struct.Struct(">I")
BATCH = 256 * 1024


def main():
    path, mtu = sys.argv[1], int(sys.argv[2])
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI))
    os.set_blocking(tap, False)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
    threading.Thread(target=upwards, args=(tap, sock, mtu), daemon=True).start()
    downwards(tap, sock)


def upwards(tap, sock, mtu):
    import select

    poller = select.poll()
    poller.register(tap, select.POLLIN)
    buffer = bytearray(BATCH + mtu + 64)
    view = memoryview(buffer)
    while True:
        at = 0
        try:
            while at < BATCH:
                size = os.readv(tap, (view[at + 4 : at + mtu + 64],))
                LENGTH.pack_into(buffer, at, size)
                at += size + 4
        except BlockingIOError:
            pass
        if at:
            sock.sendall(view[:at])
        else:
            poller.poll()


def downwards(tap, sock):
    buffer = bytearray(BATCH * 2)
    view = memoryview(buffer)
    have = 0
    while size := sock.recv_into(view[have:]):
        have += size
        at = 0
        while have - at >= 4 and have - at - 4 >= (length := LENGTH.unpack_from(buffer, at)[0]):
            try:
                os.write(tap, view[at + 4 : at + 4 + length])
            except OSError:
                pass
            at += length + 4
        buffer[: have - at] = buffer[at:have]
        have -= at


main()
