"""Headers and rules: what passes, what is dropped, what ends the connection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.packets.packet import MAX_PACKET, Malformed, length_in_stream, parse
from netstack.packets.policy import (
    FORBIDDEN,
    FORBIDDEN_V6,
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    Guard,
    Networks,
    Verdict,
    inspect,
    rules_at_enclave,
    rules_at_parent,
)
from tests.net.packets import ELSEWHERE, ENCLAVE, ipv4, ipv6, offload, tcp

PARENT = Guard(rules_at_parent((ENCLAVE, "fd00:118::2")))
INSIDE = Guard(rules_at_enclave((ENCLAVE, "fd00:118::2"), ("10.200.0.0/16",)))


def judge(guard, packet):
    return inspect(guard, offload() + packet, 0, 10 + len(packet))


@pytest.mark.parametrize(
    "packet", [ipv4(), ipv6(), ipv4(payload=b""), ipv4(payload=b"x" * 65_515)]
)
def test_a_packet_is_read_and_passes(packet):
    header = parse(packet, 0, len(packet))

    assert header.length == len(packet)
    assert judge(PARENT, packet) is Verdict.PASS


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "empty"),
        (b"\x45", "1 bytes"),
        (ipv4()[:19], "19 bytes"),
        (ipv6()[:39], "39 bytes"),
        (ipv4(first=0x55), "version 5"),
        (ipv4(first=0x44), "header length 16"),
        (ipv4(first=0x4F, payload=b"x" * 8), "header length 60 of 28"),
        (ipv4(total=19), "header length 20 of 19"),
        (ipv4(total=27), "total length 27, received 28"),
        (ipv4(total=29), "total length 29, received 28"),
        (ipv4(total=0), "header length 20 of 0"),
        (ipv4(total=65_535), "received 28"),
        (ipv6(payload_length=9), "payload length 9, received 8"),
        (ipv6(payload_length=0), "payload length 0, received 8"),
    ],
)
def test_lengths_that_do_not_agree_end_the_connection(packet, reason):
    with pytest.raises(Malformed, match=reason):
        judge(PARENT, packet)


@pytest.mark.parametrize("network", [*FORBIDDEN, *FORBIDDEN_V6])
def test_nothing_leaves_for_a_forbidden_network(network):
    from ipaddress import ip_network

    net = ip_network(network)
    for address in {net[0], net[-1], net[net.num_addresses // 2]}:
        packet = (ipv4 if net.version == 4 else ipv6)(destination=str(address))
        assert judge(PARENT, packet) is Verdict.DESTINATION, address


@pytest.mark.parametrize("source", ["10.118.0.1", "10.200.0.2", "5.5.5.5", "127.0.0.1"])
def test_the_parent_takes_the_enclaves_own_address_only(source):
    assert judge(PARENT, ipv4(source=source)) is Verdict.SOURCE


@pytest.mark.parametrize(
    ("source", "destination", "verdict"),
    [
        (ELSEWHERE, ENCLAVE, Verdict.PASS),
        ("10.118.0.1", ENCLAVE, Verdict.PASS),  # "too big" comes from the parent itself
        (ELSEWHERE, "10.200.0.2", Verdict.DESTINATION),
        (ELSEWHERE, "10.118.0.53", Verdict.DESTINATION),
        (ELSEWHERE, "127.0.0.1", Verdict.DESTINATION),
        ("10.200.0.2", ENCLAVE, Verdict.SOURCE),
        ("127.0.0.1", ENCLAVE, Verdict.SOURCE),
        (ENCLAVE, ENCLAVE, Verdict.SOURCE),
        ("224.0.0.1", ENCLAVE, Verdict.SOURCE),
    ],
)
def test_the_enclave_takes_what_is_for_it_and_from_outside(source, destination, verdict):
    assert judge(INSIDE, ipv4(source, destination)) is verdict


TCP_GSO = {"flags": NEEDS_CSUM, "gso": GSO_TCPV4, "header": 40, "size": 1_448, "start": 20, "offset": 16}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "packet", "verdict"),
    [
        ({}, tcp(b"x" * 9_000), Verdict.PASS),
        ({"gso": GSO_TCPV4 | GSO_ECN}, tcp(b"x" * 9_000), Verdict.PASS),
        ({"size": 47}, tcp(b"x" * 9_000), Verdict.OFFLOAD),
        ({"size": 0}, tcp(b"x" * 9_000), Verdict.OFFLOAD),
        ({"flags": 0}, tcp(b"x" * 9_000), Verdict.OFFLOAD),
        ({"flags": 8 | NEEDS_CSUM}, tcp(b"x" * 9_000), Verdict.OFFLOAD),
        ({"gso": 3}, tcp(b"x" * 9_000), Verdict.OFFLOAD),  # UFO: long gone
        ({"gso": 99}, tcp(b"x" * 9_000), Verdict.OFFLOAD),
        ({"gso": GSO_TCPV6}, tcp(b"x" * 9_000), Verdict.OFFLOAD),
        ({"gso": GSO_UDP_L4}, tcp(b"x" * 9_000), Verdict.OFFLOAD),
        ({"offset": 6}, tcp(b"x" * 9_000), Verdict.OFFLOAD),
        ({}, tcp(b"x" * 9_000, fragment=0x2000), Verdict.OFFLOAD),
        ({}, ipv4(payload=b"x" * 9_000), Verdict.OFFLOAD),
        ({"gso": GSO_UDP_L4, "offset": 6}, ipv4(payload=b"x" * 9_000), Verdict.PASS),
        (
            {"gso": GSO_UDP_L4, "offset": 6, "size": 70},
            ipv4(payload=b"x" * 9_000),
            Verdict.OFFLOAD,
        ),
        ({"gso": GSO_UDP_L4, "offset": 6, "size": 0}, ipv4(payload=b"x" * 9_000), Verdict.OFFLOAD),
    ],
)
def test_an_offload_header_is_what_our_kernel_would_write(change, packet, verdict):
    data = offload(**{**TCP_GSO, **change}) + packet

    assert inspect(PARENT, data, 0, len(data)) is verdict


@pytest.mark.parametrize(("start", "offset"), [(19, 16), (20, 65_535), (65_535, 16), (9_050, 16)])
def test_a_checksum_outside_of_the_packet_is_dropped_and_ends_nothing(start, offset):
    """A tenant's raw socket can have its own kernel write this: the connection is everybody's."""
    data = offload(**{**TCP_GSO, "start": start, "offset": offset}) + tcp(b"x" * 9_000)

    assert inspect(PARENT, data, 0, len(data)) is Verdict.OFFLOAD


def test_a_flood_of_addresses_is_forgotten_again():
    networks = Networks(FORBIDDEN, remember=100)
    for number in range(10_000):
        assert (number.to_bytes(4, "big") in networks) is (number < 1 << 24)

    assert len(networks._known) <= 100


@given(st.binary(max_size=200))
def test_any_bytes_are_judged_or_malformed(data):
    try:
        assert inspect(PARENT, data, 0, len(data)) in Verdict
    except Malformed:
        pass


@given(st.binary(max_size=80))
def test_a_stream_of_packets_tells_each_length_or_is_malformed(data):
    try:
        length = length_in_stream(data, 0, len(data))
    except Malformed:
        return
    assert length is None if len(data) < 4 else 20 <= length <= MAX_PACKET
