"""What may come out of the stream and into our kernel. Both ends believe that the other is hostile.

The parent takes from the enclave only what the enclave's own address sent, and nothing to private
networks or the instance's metadata; the enclave takes only what is for its address. The kernel's
firewall says the same again (`netstack.machine.firewall`): each is enough alone.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from netstack.packets.packet import TCP, UDP, Header, Malformed, parse

# What no packet of a tenant may be sent to: RFC 6890 and its followers.
FORBIDDEN = (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",  # private, RFC 1918
    "100.64.0.0/10",  # carrier's NAT, RFC 6598
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link local: AWS's instance metadata and time
    "172.16.0.0/12",  # private
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",  # private
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",  # multicast, reserved, broadcast
)
FORBIDDEN_V6 = (
    "::/127",
    "::ffff:0:0/96",
    "64:ff9b::/96",  # NAT64: the IPv4 ranges above, in other clothes
    "64:ff9b:1::/48",
    "100::/64",
    "2001:db8::/32",
    "2002::/16",  # 6to4: the same
    "fc00::/7",  # unique local: fd00:ec2::254 is AWS's metadata
    "fe80::/10",
    "ff00::/8",
)
# No source of what comes in: an answer to these would never leave this machine.
NEVER_A_SOURCE = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/127", "fe80::/10", "ff00::/8")


class Verdict(IntEnum):
    """What becomes of a packet, and under what name it is counted."""

    PASS = 0
    SOURCE = 1
    DESTINATION = 2
    OFFLOAD = 3


class Networks:
    """Is this address in one of them? Answers are remembered, boundedly."""

    def __init__(self, networks: Iterable[str], remember: int = 4_096) -> None:
        self._networks = tuple(ip_network(each) for each in networks)
        self._remember = remember
        self._known: dict[bytes, bool] = {}

    def __contains__(self, address: bytes) -> bool:
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= self._remember:
                self._known.clear()  # a flood of addresses costs time, never memory
            known = self._known[address] = self._look(address)
        return known

    def _look(self, packed: bytes) -> bool:
        address = ip_address(packed)
        return any(address in each for each in self._networks if _same_family(each, packed))


def _same_family(network: IPv4Network | IPv6Network, packed: bytes) -> bool:
    return network.max_prefixlen == len(packed) * 8


@dataclass(frozen=True)
class Rules:
    """As text, so that it can be handed to another process.

    An empty ``sources`` or ``destinations`` admits every address that ``not_from``/``not_to`` do not
    name.
    """

    sources: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    not_from: tuple[str, ...] = ()
    not_to: tuple[str, ...] = ()


def rules_at_parent(enclave: Iterable[str]) -> Rules:
    """For what the enclave with these addresses sends."""
    return Rules(sources=tuple(enclave), not_to=(*FORBIDDEN, *FORBIDDEN_V6))


def rules_at_enclave(own: Iterable[str], containers: Iterable[str]) -> Rules:
    """For what the parent sends us. Nothing from outside claims to come from inside."""
    own = tuple(own)
    return Rules(destinations=own, not_from=(*NEVER_A_SOURCE, *own, *containers))


class Guard:
    """`Rules`, made quick: one call per packet."""

    def __init__(self, rules: Rules) -> None:
        self._sources = frozenset(ip_address(each).packed for each in rules.sources)
        self._destinations = frozenset(ip_address(each).packed for each in rules.destinations)
        self._not_from = Networks(rules.not_from)
        self._not_to = Networks(rules.not_to)

    def judge(self, header: Header) -> Verdict:
        """By addresses."""
        source, destination = header.source, header.destination
        if (self._sources and source not in self._sources) or source in self._not_from:
            return Verdict.SOURCE
        if self._destinations and destination not in self._destinations:
            return Verdict.DESTINATION
        if destination in self._not_to:
            return Verdict.DESTINATION
        return Verdict.PASS


# struct virtio_net_hdr, virtio 1.2 section 5.1.6, little-endian: flags, gso_type, hdr_len, gso_size,
# csum_start, csum_offset. It goes straight into our kernel, and the peer wrote it.
OFFLOAD_HEADER = struct.Struct("<BBHHHH")
NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80
# The kernel's least segment (tcp_min_snd_mss), and its most segments in one UDP packet.
MIN_TCP_SEGMENT, _MAX_UDP_SEGMENTS = 48, 128
# GSO type -> protocol, address length, offset of the checksum in the transport's header, its length
_SEGMENTED = {
    GSO_TCPV4: (TCP, (4,), 16, 20),
    GSO_TCPV6: (TCP, (16,), 16, 20),
    GSO_UDP_L4: (UDP, (4, 16), 6, 8),
}


def inspect(guard: Guard, data: bytes | bytearray | memoryview, start: int, end: int) -> Verdict:
    """Judge an offload header and the packet behind it. Raises `Malformed`."""
    body = start + OFFLOAD_HEADER.size
    if body > end:
        raise Malformed(f"{end - start} bytes of offload header")
    header = parse(data, body, end)
    verdict = guard.judge(header)
    if verdict is not Verdict.PASS:
        return verdict
    flags, gso_type, _, gso_size, csum_start, csum_offset = OFFLOAD_HEADER.unpack_from(data, start)
    if flags & NEEDS_CSUM and not (
        header.header_length <= csum_start and csum_start + csum_offset + 2 <= header.length
    ):
        # A tenant's raw socket can make its kernel write this: no reason to end everybody's connection.
        return Verdict.OFFLOAD
    if flags & ~(NEEDS_CSUM | DATA_VALID):
        return Verdict.OFFLOAD
    if gso_type == GSO_NONE or _segments_well(header, flags, gso_type, gso_size, csum_offset):
        return Verdict.PASS
    return Verdict.OFFLOAD


def _segments_well(
    header: Header, flags: int, gso_type: int, gso_size: int, csum_offset: int
) -> bool:
    """Only what our own kernel would build: syzbot lives on offload headers that claim otherwise."""
    known = _SEGMENTED.get(gso_type & ~GSO_ECN)
    if known is None or header.fragment or not flags & NEEDS_CSUM:
        return False
    protocol, families, checksum_at, least = known
    if header.protocol != protocol or len(header.source) not in families:
        return False
    payload = header.length - header.header_length - least
    if csum_offset != checksum_at or payload < 0:
        return False
    if protocol == TCP:
        return gso_size >= MIN_TCP_SEGMENT
    return gso_size > 0 and payload <= gso_size * _MAX_UDP_SEGMENTS
