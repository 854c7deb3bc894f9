"""`policy.inspect`, remembered: what passed once passes again without being taken apart. Pure.

A packet is looked up by everything that `inspect` decides by, but for the lengths; those are compared with
what it asked of them. Whatever is not found, or does not agree, goes to `inspect`, which alone refuses.
IPv4 without options, not segmented or TCP: anything else is rare, or large enough not to matter.
"""

import struct
from collections.abc import Callable

from netstack.packets.policy import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    MIN_TCP_SEGMENT,
    NEEDS_CSUM,
    OFFLOAD_HEADER,
    Guard,
    Verdict,
    inspect,
)

# Offload header: flags and GSO type, segment, checksum's place. IPv4: version and header length, total
# length (big-endian, so its bytes come swapped), fragment, protocol, both addresses.
_HEAD = struct.Struct("<H2xHIBxH2xHxB2x8s")
_REMEMBER = 4_096
_DONT_FRAGMENT = 0x0040  # swapped

Judge = Callable[[memoryview, int, int], Verdict]


def make_judge(guard: Guard) -> Judge:
    """A function of (data, start, end) that answers as `inspect` does. Raises `Malformed`, as it does."""
    known: dict[tuple[object, ...], tuple[int, int]] = {}
    unpack, look, least_size = _HEAD.unpack_from, known.get, _HEAD.size

    def judge(data: memoryview, start: int, end: int) -> Verdict:
        size = end - start
        if size < least_size:
            return inspect(guard, data, start, end)
        kind, segment, checksum, first, total, fragment, protocol, pair = unpack(data, start)
        key = (kind, checksum, first, fragment, protocol, pair)
        least = look(key)
        if (
            least is not None
            and size >= least[0]
            and segment >= least[1]
            and (total >> 8 | (total & 0xFF) << 8) == size - 10
        ):
            return Verdict.PASS
        verdict = inspect(guard, data, start, end)
        if verdict is Verdict.PASS and first == 0x45 and fragment in (0, _DONT_FRAGMENT):
            if len(known) >= _REMEMBER:
                known.clear()  # a flood of addresses costs time, never memory
            if (found := _least(data, start)) is not None:
                known[key] = found
        return verdict

    return judge


def _least(data: memoryview, start: int) -> tuple[int, int] | None:
    """What a packet like this one, which passed, must at least have: bytes in all, and per segment."""
    flags, gso_type, _, _, csum_start, csum_offset = OFFLOAD_HEADER.unpack_from(data, start)
    checksum = csum_start + csum_offset + 2 if flags & NEEDS_CSUM else 0
    if gso_type == GSO_NONE:
        return OFFLOAD_HEADER.size + max(20, checksum), 0
    if gso_type & ~GSO_ECN != GSO_TCPV4:
        return None
    return OFFLOAD_HEADER.size + max(20 + 20, checksum), MIN_TCP_SEGMENT
