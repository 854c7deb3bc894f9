"""A resolver on the internet that speaks DNS over TLS (RFC 7858) only: ``dot.py CERT KEY ADDRESS LOG``.

Every name has the address 5.5.5.5; ``rebind.`` names have a private one. Each name asked is written to LOG.
"""

import socket
import ssl
import struct
import sys
import threading


def _name(query, at):
    labels = []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += query[at] + 1
    return ".".join(labels), at + 1


def answer(query):
    name, end = _name(query, 12)
    kind = struct.unpack_from(">H", query, end)[0]
    address = "10.0.0.7" if name.startswith("rebind.") else "5.5.5.5"
    found = kind == 1
    head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, int(found), 0, 0)
    record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(address)
    return name, head + query[12 : end + 4] + (record if found else b"")


def _exactly(sock, size):
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def _serve(raw, context, log):
    try:
        with context.wrap_socket(raw, server_side=True) as sock:
            while True:
                query = _exactly(sock, struct.unpack(">H", _exactly(sock, 2))[0])
                name, reply = answer(query)
                with open(log, "a") as file:
                    file.write(name + "\n")
                sock.sendall(struct.pack(">H", len(reply)) + reply)
    except (OSError, EOFError):
        pass


def main():
    certificate, key, address, log = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server((address, 853))
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_serve, args=(sock, context, log), daemon=True).start()


if __name__ == "__main__":
    main()
