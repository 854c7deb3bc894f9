"""Datagrams of one flow that wait at the device, made into one UDP super-packet (UDP_L4, Linux 6.2). Pure.

TCP comes from the kernel in super-packets already; UDP mostly does not, and each datagram would cost the
other end a system call and a way through its firewall. It cuts them apart again, each with its checksum.
Only neighbours are joined, so nothing is reordered, and only what a kernel built or has verified: where a
checksum may still be wrong, making it anew would hide that.
"""

import struct

from netstack.packets.framing import HEADER
from netstack.packets.policy import DATA_VALID, GSO_UDP_L4, NEEDS_CSUM, OFFLOAD_HEADER

# Where a frame has what: its own header, the offload header, IPv4 without options, UDP, data.
_OFFLOAD, _IP, _DATA = 4, 14, 42
_HEADERS = _DATA - _OFFLOAD
# Kind of offload, place of the checksum | version and TOS | fragment, TTL, protocol | addresses, ports.
_FLOW = struct.Struct("<H4xI2s4x4s2x12s")
_LENGTHS = struct.Struct(">2xH20xH")  # of IP and of UDP
_WORDS = struct.Struct(">10H")
# UDP_MAX_SEGMENTS before Linux 6.9.
MOST_SEGMENTS = 64
MOST_DATA = 65_535 - 28
# A datagram that is as large as this comes in fragments, or is a super-packet already.
MOST_SIZE = 9_100
_TO_BE_MADE = (NEEDS_CSUM, 20 | 6 << 16)


class Coalescer:
    """For one buffer of frames, filled from the front; `close` before it is sent."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._flow: tuple[object, ...] | None = None
        self._start = self._segment = self._segments = self._data = 0

    def add(self, at: int, size: int) -> int:
        """``size`` bytes were read behind the frame header at ``at``. Returns where the next one goes."""
        view, data = self._view, size - _HEADERS
        flow = _FLOW.unpack_from(view, at + _OFFLOAD)
        whole = data > 0 and _LENGTHS.unpack_from(view, at + _IP) == (data + 28, data + 8)
        if (
            whole
            and flow == self._flow
            and data <= self._segment
            and self._data + data <= MOST_DATA
        ):
            view[at : at + data] = view[at + _DATA : at + _DATA + data]
            self._data += data
            self._segments += 1
            if data < self._segment or self._segments == MOST_SEGMENTS:
                self.close()
            return at + data
        self.close()
        if whole and _joinable(flow):
            self._flow, self._start = flow, at
            self._segment, self._segments, self._data = data, 1, data
        HEADER.pack_into(view, at, size)
        return at + _OFFLOAD + size

    def close(self) -> None:
        """No more for the flow that is open: make its headers say what is there."""
        if self._flow is not None and self._segments > 1:
            self._finish(self._start, self._data)
        self._flow = None

    def _finish(self, at: int, data: int) -> None:
        view, ip = self._view, at + _IP
        HEADER.pack_into(view, at, _HEADERS + data)
        OFFLOAD_HEADER.pack_into(
            view, at + _OFFLOAD, NEEDS_CSUM, GSO_UDP_L4, 28, self._segment, 20, 6
        )
        view[ip + 2 : ip + 4] = (data + 28).to_bytes(2, "big")
        view[ip + 10 : ip + 12] = b"\0\0"
        words = _WORDS.unpack_from(view, ip)
        view[ip + 10 : ip + 12] = (~_fold(sum(words)) & 0xFFFF).to_bytes(2, "big")
        udp = ip + 20
        view[udp + 4 : udp + 6] = (data + 8).to_bytes(2, "big")
        # The pseudo header's sum (RFC 768); the kernel adds the rest of each segment.
        pseudo = _fold(sum(words[6:]) + 17 + data + 8)
        view[udp + 6 : udp + 8] = pseudo.to_bytes(2, "big")


def _joinable(flow: tuple[int, int, bytes, bytes, bytes]) -> bool:
    """Whole UDP packets without IP options, their checksum verified or still to be made."""
    kind, checksum, first, middle, _ = flow
    return (
        ((kind, checksum) == _TO_BE_MADE or kind == DATA_VALID)
        and first[0] == 0x45
        and middle[0] & 0xBF == 0
        and middle[1] == 0
        and middle[3] == 17
    )


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
