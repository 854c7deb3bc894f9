"""The bytes of the `tun` plane on its stream. All integers are little-endian.

One hello each way: magic ``ENST``, version u8, queue u8, MTU u16, offloads u32 (what the sender's kernel
takes, `netstack.planes.tun`). Then frames: u32 of kind (high byte) and length (low 24 bits), and the payload. A
packet's payload is a virtio_net_hdr of 10 bytes and the IP packet; a ping's is empty.
"""

import struct
from dataclasses import dataclass

from netstack.packets.packet import MAX_PACKET, Malformed
from netstack.packets.policy import OFFLOAD_HEADER

VERSION = 1
PACKET, PING = 0, 1
LEAST_MTU = 1_280
HEADER = struct.Struct("<I")
MAX_PAYLOAD = OFFLOAD_HEADER.size + MAX_PACKET
_LENGTH = 0xFF_FF_FF
_MAGIC = b"ENST"
_HELLO = struct.Struct("<4sBBHI")
HELLO_SIZE = _HELLO.size
PING_FRAME = HEADER.pack(PING << 24)


@dataclass(frozen=True)
class Hello:
    """Who is at the other end, for which queue, and what its kernel can take."""

    queue: int
    mtu: int
    offloads: int

    def encode(self) -> bytes:
        """Its 12 bytes."""
        return _HELLO.pack(_MAGIC, VERSION, self.queue, self.mtu, self.offloads)


def decode_hello(data: bytes, queues: int) -> Hello:
    """The hello of a peer with as many queues as we. Raises `Malformed`."""
    if len(data) != HELLO_SIZE:
        raise Malformed(f"a hello of {len(data)} bytes")
    magic, version, queue, mtu, offloads = _HELLO.unpack(data)
    if magic != _MAGIC:
        raise Malformed(f"a hello that begins with {magic!r}")
    if version != VERSION:
        raise Malformed(f"the peer speaks version {version}, we {VERSION}")
    if queue >= queues:
        raise Malformed(f"queue {queue} of {queues}")
    if mtu < LEAST_MTU:
        raise Malformed(f"an MTU of {mtu}")
    return Hello(queue, mtu, offloads)


def next_frame(
    data: bytes | bytearray | memoryview, start: int, end: int
) -> tuple[int, int, int] | None:
    """Kind, first and last byte (exclusive) of the payload at ``start``; None when it has not all come.

    Raises `Malformed` as soon as the header shows it, so that nothing is ever waited for in vain.
    """
    if end - start < 4:
        return None
    (word,) = HEADER.unpack_from(data, start)
    kind, length = word >> 24, word & _LENGTH
    if kind == PACKET:
        if not OFFLOAD_HEADER.size < length <= MAX_PAYLOAD:
            raise Malformed(f"a packet of {length} bytes")
    elif kind != PING or length:
        raise Malformed(f"a frame of kind {kind} and {length} bytes")
    last = start + 4 + length
    return None if last > end else (kind, start + 4, last)
