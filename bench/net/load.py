"""Small requests: ``serve`` answers on port 7777; ``ask HOST KIND SECONDS`` prints microseconds as JSON.

Kinds: tcp (one connection), udp, connect (a new connection each).
"""

import json
import socket
import statistics
import sys
import threading
import time

PORT = 7_777


def serve():
    threading.Thread(target=_serve_udp, daemon=True).start()
    listener = socket.create_server(("", PORT), backlog=1_024)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_echo, args=(sock,), daemon=True).start()


def _serve_udp():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", PORT))
    while True:
        data, peer = sock.recvfrom(100)
        sock.sendto(data, peer)


def _echo(sock):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock:
        while data := sock.recv(100):
            sock.sendall(data)


def ask(host, kind, seconds):
    once = {"tcp": _on_one_connection, "udp": _on_udp, "connect": _on_a_new_one}[kind](host)
    took, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        once()
        took.append((time.perf_counter() - began) * 1e6)
    took.sort()
    return {
        "p50_us": statistics.median(took),
        "p99_us": took[len(took) * 99 // 100],
        "per_s": len(took) / seconds,
    }


def _on_one_connection(host):
    sock = socket.create_connection((host, PORT), 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return lambda: (sock.sendall(b"x"), sock.recv(10))


def _on_udp(host):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect((host, PORT))
    return lambda: (sock.send(b"x"), sock.recv(10))


def _on_a_new_one(host):
    def once():
        with socket.create_connection((host, PORT), 5) as sock:
            sock.sendall(b"x")
            sock.recv(10)

    return once


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        print(json.dumps(ask(sys.argv[2], sys.argv[3], float(sys.argv[4]))))
