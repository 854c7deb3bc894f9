"""IP headers, as far as one who forwards them must read: RFC 791, RFC 8200.

Every length is checked against what was received before anything is believed.
"""

import struct
from typing import NamedTuple

MAX_PACKET = 65_535
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
_IPV4 = struct.Struct(">BxHxxHxBxx4s4s")
_IPV6 = struct.Struct(">BxxxHBx16s16s")
_DONT_FRAGMENT_AND_RESERVED = 0xC000


class Malformed(Exception):
    """The peer sent what no kernel sends; the connection cannot be trusted any longer."""


class Header(NamedTuple):
    """What was read. Addresses are 4 or 16 bytes; ``fragment``: part of a packet, not all of it."""

    length: int
    header_length: int
    protocol: int
    fragment: bool
    source: bytes
    destination: bytes


def parse(data: bytes | bytearray | memoryview, start: int, end: int) -> Header:
    """The header of the packet that fills ``data[start:end]`` exactly. Raises `Malformed`."""
    size = end - start
    if size < 1:
        raise Malformed("an empty packet")
    version = data[start] >> 4
    if version == 4:
        return _parse_ipv4(data, start, size)
    if version == 6:
        return _parse_ipv6(data, start, size)
    raise Malformed(f"IP version {version}")


def _parse_ipv4(data: bytes | bytearray | memoryview, start: int, size: int) -> Header:
    if size < 20:
        raise Malformed(f"{size} bytes of IPv4")
    first, length, fragment, protocol, source, destination = _IPV4.unpack_from(data, start)
    header_length = (first & 0x0F) * 4
    if not 20 <= header_length <= length:
        raise Malformed(f"IPv4 header length {header_length} of {length}")
    if length != size:
        raise Malformed(f"IPv4 total length {length}, received {size}")
    cut = bool(fragment & ~_DONT_FRAGMENT_AND_RESERVED)
    return Header(length, header_length, protocol, cut, source, destination)


def _parse_ipv6(data: bytes | bytearray | memoryview, start: int, size: int) -> Header:
    if size < 40:
        raise Malformed(f"{size} bytes of IPv6")
    _, payload, protocol, source, destination = _IPV6.unpack_from(data, start)
    if payload + 40 != size:
        raise Malformed(f"IPv6 payload length {payload}, received {size - 40}")
    # A fragment header (44) comes as the next header: nothing of ours looks behind it.
    return Header(size, 40, protocol, protocol == 44, source, destination)


def length_in_stream(data: bytes | bytearray | memoryview, start: int, end: int) -> int | None:
    """Length of the IPv4 packet that begins at ``start`` of a stream of packets back to back.

    None: too little has come to tell. Raises `Malformed`.
    """
    if end - start < 4:
        return None
    if data[start] >> 4 != 4:
        raise Malformed(f"IP version {data[start] >> 4} in a stream of IPv4")
    length = data[start + 2] << 8 | data[start + 3]
    if length < 20:
        raise Malformed(f"IPv4 total length {length}")
    return length
