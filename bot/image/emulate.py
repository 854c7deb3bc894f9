"""An image under QEMU's software emulation, as Nitro would start it: no BIOS tables, no PCI, devices named on the command line.

Only for a look, and for tests: nothing attests what runs there, and whoever runs it can read it.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from bot.image.eif import BadEif, Eif

QEMU = ("qemu-system-x86_64",)
_MHZ = re.compile(r"cpu MHz\s*: ([0-9.]+)")


def unpack(eif: Eif, folder: Path) -> None:
    """What a machine that knows no EIF is given. Raises OSError."""
    (folder / "kernel").write_bytes(eif.kernel)
    (folder / "initrd").write_bytes(b"".join(eif.ramdisks))


def command(
    eif: Eif, folder: Path, memory_mib: int, vsock: Path | None = None, qemu: Sequence[str] = QEMU
) -> list[str]:
    """Runs what `unpack` wrote. ``vsock``: the socket of a vhost-user backend. The console is the standard output.
    Raises `BadEif`."""
    try:
        words = eif.cmdline.decode("ascii")
    except UnicodeDecodeError as error:
        raise BadEif("the command line is not ASCII") from error
    # Under load the emulated clock fails to calibrate, and the boot hangs: it is told the rate.
    if rate := _MHZ.search(Path("/proc/cpuinfo").read_text()):
        words += f" tsc_early_khz={int(float(rate[1]) * 1000)}"
    # There is no keyboard controller, by which Nitro is told to end.
    words += " reboot=t"
    devices = []
    if vsock is not None:
        devices = ["-chardev", f"socket,id=c,path={vsock}", "-device", "vhost-user-vsock-device,chardev=c"]  # fmt: skip
    return [
        *qemu, "-M", "microvm,acpi=off,memory-backend=m", "-accel", "tcg", "-cpu", "qemu64", "-smp", "2",
        "-m", str(memory_mib), "-object", f"memory-backend-memfd,id=m,size={memory_mib}M,share=on",
        "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio", *devices,
        "-kernel", f"{folder}/kernel", "-initrd", f"{folder}/initrd", "-append", words,
    ]  # fmt: skip
