"""Loop devices and mounts, by the kernel's own calls. Blocking; raises OSError.

Each device is attached with autoclear: it goes with its last user, so that a death at any moment leaves none behind.
"""

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# linux/loop.h
_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_AUTOCLEAR, _DIRECT_IO = 4, 16
_BLOCK_BYTES = 4_096
# linux/mount.h
_NODEV, _NOATIME = 4, 1024
_LOOP_MAJOR = 7
_TRIES = 100
# Else a kernel thread zeroes the inode tables, which a loop turns into holes: blocks that were preallocated are lost.
_OPTIONS = b"noinit_itable"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Mounted:
    """An image that is in use: its device's name, and where it is mounted."""

    device: str
    where: Path


def mount_image(image: Path, where: Path) -> None:
    """An ext4 image, on a folder that is there."""
    descriptor, device = _attach(image)
    try:
        _mount(device, where)
    finally:
        os.close(descriptor)


def _attach(image: Path) -> tuple[int, str]:
    """A device on the file, held open until it is mounted."""
    backing = os.open(image, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _GET_FREE)
            try:
                return _configured(number, backing, image)
            except OSError as error:
                # Somebody else took it between the two calls.
                if error.errno != errno.EBUSY:
                    raise
        raise OSError(errno.EBUSY, "no loop device is free", str(image))
    finally:
        os.close(backing)
        os.close(control)


def _configured(number: int, backing: int, image: Path) -> tuple[int, str]:
    device = f"/dev/loop{number}"
    try:
        # Where /dev is a plain tmpfs, nodes do not appear by themselves.
        os.mknod(device, 0o600 | stat.S_IFBLK, os.makedev(_LOOP_MAJOR, number))
    except FileExistsError:
        pass
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    name = os.fsencode(image)[-63:]
    flags = _AUTOCLEAR | _DIRECT_IO
    info = struct.pack("<5Q4I64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    try:
        fcntl.ioctl(
            descriptor, _CONFIGURE, struct.pack("<II", backing, _BLOCK_BYTES) + info + bytes(64)
        )
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, device


def _mount(device: str, where: Path) -> None:
    flags = ctypes.c_ulong(_NODEV | _NOATIME)
    if _libc.mount(device.encode(), os.fsencode(where), b"ext4", flags, _OPTIONS):
        _raise(str(where))


def unmount(where: Path) -> None:
    """What is not mounted is as good as unmounted."""
    if _libc.umount2(os.fsencode(where), 0) and ctypes.get_errno() not in (
        errno.EINVAL,
        errno.ENOENT,
    ):
        _raise(str(where))


def sync(where: Path) -> None:
    """All that was written to the file system is in its image."""
    descriptor = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor):
            _raise(str(where))
    finally:
        os.close(descriptor)


def _raise(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), what)


def mounted(folder: Path) -> dict[Path, Mounted]:
    """Images below the folder that are in use, as the kernel says: there is nothing to remember over a crash of ours."""
    backing = dict(_backing_files())
    found = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, where = line.split()[:2]
        image = backing.get(device.removeprefix("/dev/"))
        # Docker binds volumes to places of its own: the first mount of a device is ours.
        if image is not None and folder in image.parents and image not in found:
            found[image] = Mounted(device.removeprefix("/dev/"), Path(where))
    return found


def _backing_files() -> Iterator[tuple[str, Path]]:
    for entry in Path("/sys/block").glob("loop*"):
        try:
            yield entry.name, Path((entry / "loop/backing_file").read_text().strip())
        except OSError:
            continue  # not attached


def written(device: str) -> tuple[str, ...]:
    """Stands still as long as nothing is written, and nothing on its way; only while the device stays attached."""
    block = Path("/sys/block") / device
    # Sectors, not writes: a flush counts as a write, and we flush ourselves.
    return (block / "stat").read_text().split()[6], (block / "inflight").read_text()
