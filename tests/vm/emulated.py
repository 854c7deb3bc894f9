"""The finished image as the machine of the whole stack: this EIF's kernel and ramdisks, real AF_VSOCK, software emulation."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from bot.adapters.relay_events import RelayEvents
from bot.devstack.spaces import Booted
from bot.devstack.stack import write_key
from bot.devstack.whole import WholeEnclave
from bot.image import build, emulate
from bot.image.eif import Eif, decode_eif_untrusted, encode_eif
from bot.image.pcrs import pcrs_of
from bot.image.seal import certificate_untrusted
from nips import kinds
from nips.filters import Filter
from tests.vm.machine import qemu

CID = 16
MEMORY_MIB = 4_096
# The guest reaches these at its host's address, and is reached at the last one.
PORTS = {"parent": 9_001, "packets": 9_002, "control": 9_003, "out": 9_004, "nsm": 9_005}
BACK, HEARTBEAT_PORT = 1_080, 9_000
# The kernel and init alone; emulation under load hangs now and then, and is tried once more then.
BOOT_S = 120
READY_S = 300
# Any of these, and nothing more is to be waited for.
TROUBLE = re.compile(r"Oops|Kernel panic|BUG: |unpacking failed|AE_NO_ACPI_TABLES|init: error: .*")


class Trouble(Exception):
    """What the console said last."""


@dataclass
class Emulated(Booted):
    """Nothing is shared with it: what it says, it says to its parent, or on its console."""

    eif: Eif | None = None
    hung: int = 0
    heartbeats: list = field(default_factory=list)
    _backend: subprocess.Popen | None = None

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)

    def outside(self, wire):
        return self.folder / ("in.sock" if wire == "in" else f"v_{PORTS[wire]}")

    def inside(self, wire):
        return f"vsock:any:{BACK}" if wire == "in" else f"vsock:3:{PORTS[wire]}"

    @property
    def file(self):
        return self.folder / "enclaved.eif"

    @property
    def module(self):
        return {"development_nsm": self.inside("nsm")}

    @property
    def console(self):
        path = self.folder / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def unpack(self):
        """As a host has it: a file, of which everything is read again."""
        self.eif = decode_eif_untrusted(self.file.read_bytes())
        emulate.unpack(self.eif, self.folder)

    def power_on(self, layer):
        self._start_backend()
        listener = socket.socket(socket.AF_UNIX)
        path = self.folder / f"v_{HEARTBEAT_PORT}"
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(1)
        threading.Thread(target=self._hear, args=(listener,), daemon=True).start()
        command = emulate.command(
            self.eif, self.folder, MEMORY_MIB, self.folder / "vhost.sock", qemu()
        )
        self.start(command)

    def _hear(self, listener):
        """As nitro-cli waits for it."""
        with listener:
            listener.settimeout(BOOT_S)
            with contextlib.suppress(TimeoutError):
                guest = listener.accept()[0]
                with guest:
                    self.heartbeats.append(guest.recv(1))
                    guest.sendall(self.heartbeats[-1])

    def start(self, command):
        self._process = self._spawn(command, "console.log")

    def _start_backend(self):
        for path in self.folder.glob("vhost.sock"):
            path.unlink()
        program = Path(__file__).with_name("vhost_vsock.py")
        words = [
            f"{self.folder}/vhost.sock",
            f"{self.folder}/v",
            str(CID),
            f"{BACK}={self.outside('in')}",
        ]
        self._backend = self._spawn([sys.executable, str(program), *words], "backend.log")
        end = time.monotonic() + 10
        while not (self.folder / "vhost.sock").exists():
            assert time.monotonic() < end
            time.sleep(0.02)

    def _spawn(self, command, log):
        with (self.folder / log).open("wb") as out:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def cut_power(self):
        for process in (self._process, self._backend):
            if process is not None:
                process.kill()
                process.wait()
        self._process = self._backend = None

    def check(self):
        """Raises `Trouble` when there is nothing to wait for any more."""
        console = self.console
        if TROUBLE.search(console) or not self.is_on or self._backend.poll() is not None:
            raise Trouble(console[-3_000:] + (self.folder / "backend.log").read_text()[-2_000:])


@dataclass(kw_only=True)
class EmulatedEnclave(WholeEnclave):
    """`ready` and `halted` by what the parent hears."""

    async def ready(self):
        report = await self._until(
            lambda report: report.get("step") == "ready" or report.get("halted")
        )
        if report.get("halted"):
            raise Trouble(report["halted"])
        wanted = Filter(kinds=frozenset({kinds.ANNOUNCEMENT}))
        with trio.fail_after(60):
            while True:
                for event in await RelayEvents([self.relay_url]).find([wanted], [self.relay_url]):
                    # Key escrow announces itself by the same kind.
                    if event.tag("wallet"):
                        return event.pubkey
                await trio.sleep(0.3)

    async def halted(self):
        return (await self._until(lambda report: report.get("halted")))["halted"]

    async def _until(self, holds):
        began = time.time()
        with trio.fail_after(READY_S):
            while True:
                self.machine.check()
                status = await self.status()
                if (
                    status["reported_s_ago"] is not None
                    and status["reported_s_ago"] < time.time() - began
                    and holds(status["report"])
                ):
                    return status["report"]
                await trio.sleep(0.5)

    @property
    def measured(self):
        return self.machine.file

    async def start(self, *, signed=True):
        if not self.machine.file.exists():
            await trio.to_thread.run_sync(self._make)
        await super().start(signed=signed)

    def _make(self):
        """Built, and signed by its builder and a maintainer, by the commands that are for it."""
        file, unsigned = self.machine.file, self.machine.folder / "unsigned.eif"
        unsigned.write_bytes(encode_eif(build.build(build.read_lock(), self.image)))
        common = ["--repo", self.people.repo, "--version", "0.1.0"]
        for name in ("builder", "maintainer"):
            write_key(self.folder / f"{name}.key", getattr(self.people, name))
        self._image(
            "sign-build",
            unsigned,
            "--key",
            f"{self.folder}/builder.key",
            "--out",
            file,
            "--event",
            f"{self.folder}/build.json",
            *common,
        )
        told = self._image(
            "sign-release", file, "--key", f"{self.folder}/maintainer.key", "--no-publish", *common
        )
        (self.folder / "release.json").write_text(told)
        self.machine.unpack()
        eif = self.machine.eif
        self.people = replace(
            self.people, certificate=certificate_untrusted(eif.signature, pcrs_of(eif)[0])
        )

    def _image(self, *words):
        command = [sys.executable, "-m", "bot", "image", *map(str, words)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def _write_meta(self, meta):
        """What those commands wrote, and the launcher's part."""
        told = json.loads(meta)
        told["build"] = json.loads((self.folder / "build.json").read_text())
        told["releases"] = [json.loads((self.folder / "release.json").read_text())]
        super()._write_meta(json.dumps(told))

    async def _start_enclave(self):
        for _ in range(2):
            # By this thread: its processes end with it.
            self.machine.power_on(self.image)
            with trio.move_on_after(BOOT_S):
                while "init: starting" not in self.machine.console:
                    self.machine.check()
                    await trio.sleep(0.5)
                return
            self.machine.cut_power()
            self.machine.hung += 1
        raise Trouble(f"two boots hung: {self.machine.console[-2_000:]}")
