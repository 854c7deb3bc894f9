"""A queue of a TUN device, with the kernel's offloads: one read moves up to 64 KiB (linux/if_tun.h)."""

import errno
import fcntl
import os
import struct
from time import monotonic, sleep

TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TUN, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x1, 0x100, 0x1000, 0x4000
CSUM, TSO4, TSO6, TSO_ECN, USO4, USO6 = 1, 2, 4, 8, 32, 64
TSO = CSUM | TSO4 | TSO6 | TSO_ECN
BUSY_S = 15.0
# UDP segmentation came with Linux 6.2: what an older kernel refuses is left out.
LEVELS = (TSO | USO4 | USO6, TSO, CSUM, 0)


class TunGone(Exception):
    """The device cannot be opened or was deleted: the machine's network must be applied again."""


class TunBusy(TunGone):
    """Somebody else has it."""


def open_queue(name: str, *, many: bool = False, offload: bool = True) -> int:
    """A non-blocking file descriptor on a queue of the device. Raises `TunGone`.

    The device is persistent and belongs to `netstack.machine.apply`: established connections outlive us. After a
    kill -9 the pumps of whoever was before us die a moment later than he: they are waited for, blocking, since
    nothing goes on without the device.
    """
    patient_until = monotonic() + BUSY_S
    while True:
        try:
            return _open_queue(name, many=many, offload=offload)
        except TunBusy:
            if monotonic() > patient_until:
                raise
            sleep(0.05)


def _open_queue(name: str, *, many: bool, offload: bool) -> int:
    flags = IFF_TUN | IFF_NO_PI
    flags |= IFF_VNET_HDR if offload else 0
    flags |= IFF_MULTI_QUEUE if many else 0
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise TunGone(f"/dev/net/tun: {error.strerror}") from error
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        if offload:
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", 10))
    except OSError as error:
        os.close(fd)
        gone = TunBusy if error.errno == errno.EBUSY else TunGone
        raise gone(f"{name}: {error.strerror}") from error
    return fd


def best_offloads(fd: int) -> int:
    """The most that this kernel takes."""
    for level in LEVELS:
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, level)
        except OSError:
            continue
        return level
    return 0


def set_offloads(fd: int, offloads: int) -> None:
    """What the kernel may leave to the other end. Raises `TunGone`."""
    # TSO and USO stand on checksum offload.
    wanted = offloads if offloads & CSUM else 0
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, wanted)
    except OSError as error:
        raise TunGone(f"offloads {wanted:#x}: {error.strerror}") from error
