"""Runs inside a namespace. ``serve PORT``: says to whoever connects (TCP, UDP) by which address it was
reached and how much came. ``ask tcp|udp HOST PORT [source-port] [size] [timeout-ms]``: prints that answer, or ``ERR why``.
``hold HOST PORT``: a connection that sends when it is told to. ``burst HOST PORT COUNT SIZE``: so many
datagrams at once; prints how many were answered with their size. ``unaided DEVICE``: the kernel makes checksums itself.
Uses the standard library alone, so that it runs in the VM too.
"""

import ctypes
import fcntl
import socket
import struct
import sys
import threading
import time

SO_RCVBUFFORCE = 33


def serve(port):
    threading.Thread(target=_tcp, args=(port,), daemon=True).start()
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)  # a burst is not lost here
    udp.bind(("::", port))
    while True:
        data, peer = udp.recvfrom(65_535)
        udp.sendto(f"{_plain(peer[0])} {peer[1]} {len(data)}".encode(), peer)


def _tcp(port):
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", port))
    listener.listen(256)
    while True:
        sock, peer = listener.accept()
        threading.Thread(target=_answer, args=(sock, peer), daemon=True).start()


def _answer(sock, peer):
    """All that comes until the half-close is counted, then answered."""
    size = 0
    try:
        while chunk := sock.recv(1 << 16):
            size += len(chunk)
        sock.sendall(f"{_plain(peer[0])} {peer[1]} {size}".encode())
    except OSError:
        pass
    finally:
        sock.close()


def _plain(address):
    return address.removeprefix("::ffff:")


def ask(kind, host, port, source_port=0, size=10, timeout_ms=3_000):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    sock.settimeout(timeout_ms / 1_000)
    try:
        if source_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", source_port))
        sock.connect((host, port))
        for sent in range(0, max(size, 1), 1 << 20):
            sock.sendall(b"x" * min(size - sent, 1 << 20))
        if kind == "tcp":
            sock.shutdown(socket.SHUT_WR)
        return sock.recv(200).decode()
    except OSError as error:
        return f"ERR {type(error).__name__} {error}"
    finally:
        sock.close()


def hold(host, port):
    """``more`` on standard input sends a byte and waits for its acknowledgement; ``end`` ends."""
    sock = socket.create_connection((host, port), 10)
    sock.settimeout(60)
    print("up", flush=True)
    for line in sys.stdin:
        if line == "end\n":
            sock.shutdown(socket.SHUT_WR)
            print(sock.recv(200).decode(), flush=True)
            return
        sock.sendall(b"x")
        print("acknowledged" if _acknowledged(sock, 30) else "lost", flush=True)


def burst(host, port, count, size):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    sock.settimeout(3)
    sock.connect((host, port))
    print("ready", flush=True)
    for _ in range(count):
        sock.send(b"x" * size)
    print("sent", flush=True)
    answered = 0
    try:
        while answered < count:
            answered += sock.recv(200).decode().endswith(f" {size}")
    except OSError:
        pass
    return answered


def unaided(device):
    """A packet that leaves by it has its whole checksum, as on a wire (SIOCETHTOOL, ETHTOOL_STXCSUM)."""
    value = bytearray(struct.pack("II", 0x17, 0))
    address = ctypes.addressof((ctypes.c_char * len(value)).from_buffer(value))
    request = struct.pack("16sP16x", device.encode(), address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8946, request)


def _acknowledged(sock, within_s):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not struct.unpack("i", fcntl.ioctl(sock, 0x5411, b"\0" * 4))[0]:  # SIOCOUTQ
            return True
        time.sleep(0.01)
    return False


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    elif sys.argv[1] == "hold":
        hold(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1] == "burst":
        print(burst(sys.argv[2], *(int(n) for n in sys.argv[3:])))
    elif sys.argv[1] == "unaided":
        unaided(sys.argv[2])
    else:
        kind, host, *numbers = sys.argv[2:]
        print(ask(kind, host, *(int(n) for n in numbers)))
