"""A guest under QEMU's software emulation, with real AF_VSOCK; its host's ports are Unix sockets here."""

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from bot.image import build
from bot.image.kernel import Kernel
from tests import debian
from tests.vm import initramfs

CID = 16
AGENT_PORT = 7_000
BOOT_S = 90
TRIES = 3
TROUBLE = re.compile(r"Oops|Kernel panic|BUG: ")


class DidNotBoot(Exception):
    """What the guest said last."""


def qemu():
    """Bookworm's own 7.2 corrupts the guest's EFLAGS now and then, which ends in double faults."""
    packages = ("qemu-system-x86", "qemu-system-data", "seabios")
    root = debian.fetch("bookworm-backports", *packages)
    firmware = [
        word for name in ("qemu", "seabios") for word in ("-L", f"{root}/usr/share/{name}")
    ]
    return [f"{root}/usr/bin/qemu-system-x86_64", *firmware]


class Machine:
    """`do` runs programs in the guest. ``guest_ports``: port of the guest -> Unix socket here."""

    def __init__(self, folder, guest_ports):
        self.folder = Path(folder)
        self.base = f"{folder}/v"
        self._guest_ports = guest_ports
        self._processes = []
        self._agent = None

    def boot(self):
        """Emulation under load may fail a boot: then once more."""
        found = Kernel.of(build.ready_parts(build.read_lock()).kernel)
        image = initramfs.build(found, self.folder / "initramfs")
        for attempt in range(1, TRIES + 1):
            try:
                self._boot(found, image)
            except DidNotBoot:
                self.stop()
                if attempt == TRIES:
                    raise
            else:
                return found.version
        raise AssertionError

    def _boot(self, found, image):
        listener = socket.socket(socket.AF_UNIX)
        path = Path(f"{self.base}_{AGENT_PORT}")
        path.unlink(missing_ok=True)
        with listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(1)
            self._start_backend()
            self._start_qemu(found, image)
            self._agent = self._wait_for_agent(listener)
        self._agent.settimeout(300)
        self._stream = self._agent.makefile("rwb")

    def _wait_for_agent(self, listener):
        end = time.monotonic() + BOOT_S
        while time.monotonic() < end and not TROUBLE.search(self.console()):
            try:
                return listener.accept()[0]
            except TimeoutError:
                pass
        raise DidNotBoot(self.console())

    def _start_backend(self):
        ports = [f"{port}={path}" for port, path in self._guest_ports.items()]
        program = Path(__file__).with_name("vhost_vsock.py")
        command = [
            sys.executable,
            str(program),
            f"{self.folder}/vhost.sock",
            self.base,
            str(CID),
            *ports,
        ]
        Path(f"{self.folder}/vhost.sock").unlink(missing_ok=True)
        self._spawn(command, "backend.log")
        end = time.monotonic() + 10
        while not Path(f"{self.folder}/vhost.sock").exists():
            assert time.monotonic() < end
            time.sleep(0.02)

    def _start_qemu(self, found, image):
        mhz = re.search(r"cpu MHz\s*: ([0-9.]+)", Path("/proc/cpuinfo").read_text())[1]
        # Under load the emulated clock fails to calibrate, and the boot hangs: it is told the rate.
        words = f"console=ttyS0 panic=-1 mitigations=off tsc_early_khz={int(float(mhz) * 1000)}"
        command = [
            *qemu(), "-M", "microvm,acpi=on,memory-backend=m", "-accel", "tcg",
            "-cpu", "max,-la57", "-smp", "1", "-m", "1024", "-nographic", "-no-reboot", "-nodefaults",
            "-object", "memory-backend-memfd,id=m,size=1024M,share=on",
            "-chardev", f"socket,id=c,path={self.folder}/vhost.sock", "-device", "vhost-user-vsock-device,chardev=c",
            "-serial", "stdio", "-kernel", str(found.image), "-initrd", str(image), "-append", words,
        ]  # fmt: skip
        self._spawn(command, "console.log")

    def _spawn(self, command, log):
        with (self.folder / log).open("wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self._processes.append(process)

    def console(self):
        return "\n".join(
            (self.folder / name).read_text(errors="replace")[-3_000:]
            for name in ("console.log", "backend.log")
        )

    def stop(self):
        if self._agent is not None:
            self._stream.close()
            self._agent.close()
            self._agent = None
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()

    # --- in the guest

    def _ask(self, **request):
        self._stream.write(json.dumps(request).encode() + b"\n")
        self._stream.flush()
        return json.loads(self._stream.readline())

    def do(self, *command, check=True, timeout=60):
        done = self._ask(run=command, timeout=timeout)
        assert not check or done["code"] == 0, (command, done["out"])
        return done["out"]

    def start(self, *command, log="/tmp/log"):
        return self._ask(start=command, log=log)["pid"]

    def kill(self, pid, signal=9):
        return self._ask(kill=pid, signal=signal)["code"]

    def write(self, path, text):
        self._ask(write=path, text=text)
