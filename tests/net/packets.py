"""Packets, as a kernel would send them, and as an enemy would."""

import socket
import struct

from netstack.packets.framing import HEADER, PACKET
from netstack.packets.policy import OFFLOAD_HEADER

ENCLAVE, ELSEWHERE = "10.118.0.2", "5.5.5.5"


def ipv4(source=ENCLAVE, destination=ELSEWHERE, payload=b"x" * 8, protocol=17, **change):
    """``change``: total, first, fragment."""
    total = change.get("total", 20 + len(payload))
    return (
        struct.pack(
            ">BBHHHBBH4s4s",
            change.get("first", 0x45), 0, total, 1, change.get("fragment", 0), 64, protocol, 0,
            socket.inet_aton(source), socket.inet_aton(destination),
        )
        + payload
    )  # fmt: skip


def ipv6(source="fd00:118::2", destination="2600:5::5", payload=b"x" * 8, protocol=17, **change):
    """``change``: payload_length."""
    addresses = [socket.inet_pton(socket.AF_INET6, each) for each in (source, destination)]
    length = change.get("payload_length", len(payload))
    return struct.pack(">IHBB16s16s", 6 << 28, length, protocol, 64, *addresses) + payload


def offload(flags=0, gso=0, header=0, size=0, start=0, offset=0):
    return OFFLOAD_HEADER.pack(flags, gso, header, size, start, offset)


def tcp(data, **change):
    """A TCP segment of one connection, without a checksum."""
    return ipv4(payload=struct.pack(">HHIIBBHHH", 4000, 80, 1, 1, 0x50, 0x10, 500, 0, 0) + data,
                protocol=6, **change)  # fmt: skip


def frame(body, kind=PACKET):
    return HEADER.pack(kind << 24 | len(body)) + body
