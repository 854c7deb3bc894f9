"""Datagrams joined into super-packets, and cut apart again as a kernel does: the same datagrams."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.packets.coalesce import MOST_SEGMENTS, Coalescer
from netstack.packets.framing import HEADER, next_frame
from netstack.packets.policy import (
    GSO_UDP_L4,
    OFFLOAD_HEADER,
    Guard,
    Verdict,
    inspect,
    rules_at_parent,
)
from tests.net.packets import ELSEWHERE, ENCLAVE, ipv4, offload, tcp

PARENT = Guard(rules_at_parent((ENCLAVE,)))
TO_BE_MADE = offload(flags=1, start=20, offset=6)
VERIFIED = offload(flags=2)


def folded(data):
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(source, destination, length):
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    return folded(addresses + struct.pack(">HH", 17, length))


def udp(data, port=53, head=TO_BE_MADE, **change):
    """As our kernel hands it out: the checksum is the pseudo header's, or is right."""
    destination = change.get("destination", ELSEWHERE)
    length = change.pop("length", 8 + len(data))
    checksum = pseudo(ENCLAVE, destination, 8 + len(data))
    if head == VERIFIED:
        head_and_data = struct.pack(">HHHH", 4_000, port, length, 0) + data
        checksum = ~folded(struct.pack(">H", checksum) + head_and_data) & 0xFFFF or 0xFFFF
    packet = ipv4(payload=struct.pack(">HHHH", 4_000, port, length, checksum) + data, **change)
    right = ~folded(packet[:20]) & 0xFFFF
    return head + packet[:10] + right.to_bytes(2, "big") + packet[12:]


def joined(packets):
    """Payloads of the frames that a pump would send."""
    buffer = memoryview(bytearray(1 << 20))
    coalescer, at = Coalescer(buffer), 0
    for packet in packets:
        buffer[at + 4 : at + 4 + len(packet)] = packet
        at = coalescer.add(at, len(packet))
    coalescer.close()
    found, end = [], at
    at = 0
    while frame := next_frame(buffer, at, end):
        _, start, at = frame
        found.append(bytes(buffer[start:at]))
    assert at == end
    return found


def cut_apart(payload):
    """What a kernel makes of a super-packet (udp4_ufo_fragment's successor): headers and data of each."""
    flags, gso, _, size, start, offset = OFFLOAD_HEADER.unpack_from(payload)
    if gso != GSO_UDP_L4:
        return [(payload[22:30], payload[30:34], payload[38:])]
    assert (flags, start, offset) == (1, 20, 6)
    ip = payload[10:]
    assert folded(ip[:20]) == 0xFFFF, "the IP header's checksum"
    assert struct.unpack_from(">H", ip, 2)[0] == len(ip)
    assert struct.unpack_from(">H", ip, 24)[0] == len(ip) - 20
    source, destination = (socket.inet_ntoa(ip[n : n + 4]) for n in (12, 16))
    assert struct.unpack_from(">H", ip, 26)[0] == pseudo(source, destination, len(ip) - 20)
    data = ip[28:]
    return [(ip[12:20], ip[20:24], data[at : at + size]) for at in range(0, len(data), size)]


def parts(packets):
    return [part for packet in packets for part in cut_apart(packet)]


@pytest.mark.parametrize("head", [TO_BE_MADE, VERIFIED])
def test_a_burst_of_one_flow_becomes_one_packet_that_the_peer_lets_pass(head):
    burst = [udp(bytes([n]) * 1_400, head=head) for n in range(40)] + [udp(b"last", head=head)]

    (found,) = joined(burst)

    assert cut_apart(found) == parts(burst)
    assert inspect(PARENT, found, 0, len(found)) is Verdict.PASS


@pytest.mark.parametrize(
    "other",
    [
        udp(b"y" * 100, port=54),
        udp(b"y" * 100, destination="6.6.6.6"),
        udp(b"y" * 100, fragment=0x2000),
        udp(b"y" * 100, first=0x46),
        udp(b"y" * 100, head=offload()),  # nobody verified it
        udp(b"y" * 100, length=50),  # its lengths do not agree
        udp(b""),
        offload() + tcp(b"y" * 100),
        offload() + ipv4(payload=b""),
    ],
)
def test_what_does_not_fit_travels_alone_and_in_its_place(other):
    first, second = udp(b"x" * 100), udp(b"z" * 100)

    assert joined([first, other, second]) == [first, other, second]


def test_a_longer_datagram_begins_a_packet_of_its_own():
    packets = [udp(b"x" * 100), udp(b"y" * 101), udp(b"z" * 100)]

    assert [len(cut_apart(p)) for p in joined(packets)] == [1, 2]


def test_a_shorter_datagram_is_the_last_of_its_packet():
    packets = [udp(b"x" * 100), udp(b"y" * 99), udp(b"z" * 99)]

    assert [len(cut_apart(p)) for p in joined(packets)] == [2, 1]


def test_a_super_packet_is_within_what_kernels_and_headers_can_say():
    small = [udp(b"x") for _ in range(1_000)]
    large = [udp(b"x" * 9_000) for _ in range(20)]

    assert max(len(cut_apart(p)) for p in joined(small)) == MOST_SEGMENTS
    assert all(len(p) - 10 <= 65_535 for p in joined(large))
    assert parts(joined(small)) == parts(small)
    assert parts(joined(large)) == parts(large)


@given(
    st.lists(
        st.tuples(st.integers(0, 1_500), st.sampled_from([53, 54]), st.booleans()), max_size=60
    )
)
def test_any_traffic_arrives_as_it_was_in_its_order(traffic):
    packets = [
        udp(bytes([size % 256]) * size, port, TO_BE_MADE if made else VERIFIED)
        for size, port, made in traffic
    ]

    assert parts(joined(packets)) == parts(packets)


def test_a_frame_says_its_length():
    (found,) = joined([udp(b"x" * 10), udp(b"y" * 10)])

    assert HEADER.size + len(found) == 4 + 10 + 20 + 8 + 20
