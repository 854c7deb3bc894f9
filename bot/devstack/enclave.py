"""DEVELOPMENT ONLY. What stands in for the enclave: an image folder, a module that measures it, key escrow.

`Enclave` starts ``enclaved`` from the image, and again from another one: a restart, or an upgrade.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from bot.boot.supervisor import Program
from bot.clock import SystemClock
from bot.devstack.authority import load_authority
from bot.devstack.ground import Ground
from bot.devstack.image import REPO, People, build_image

PYTHON = str(REPO / ".venv/bin/python")
SOURCE, ESCROW_SOURCE = "https://example.com/enclaved", "https://example.com/keycrux"
# Two machines: escrow does not run on the one whose keys it keeps.
INSTANCE_ID, ESCROW_INSTANCE_ID = "i-0de0000000000001", "i-0de0000000000002"
# Three, so that none of them knows the key.
ESCROW_SERVICES = 3
READY_S = 90


@dataclass
class Enclave:
    """``before`` counts what the log said before the newest start, so that its own words are found."""

    on: Ground
    config: Path
    relay_url: str
    people: People
    escrow_people: People
    image: Path
    before: dict[str, int] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.on.place.folder

    @property
    def root(self) -> Path:
        """The development root, for ``enclaved verify --dev-root``."""
        return self.folder / "authority/root.pem"

    def configuration(self) -> dict[str, Any]:
        """What ``enclaved`` must be told about its attestation and escrow."""
        return {
            "attestation": {
                "nsm": str(self.folder / "nsm.sock"),
                "development_root": str(self.root),
                "meta_file": str(self.folder / "meta.json"),
            }
        }

    async def start(self, *, signed: bool = True) -> None:
        """The module with the image's measurements, then ``enclaved``; returns when its relay listens."""
        self.before = {event: len(self._said(event)) for event in ("ready", "halted")}
        now = SystemClock().now()
        (self.folder / "meta.json").write_text(self.people.meta(self.image, now, signed=signed))
        await self._start_module("nsm", self.image, self.people)
        await self.on.supervisor.start(self.on.nursery, self._enclaved())

    async def stop(self) -> None:
        await self.on.supervisor.halt("enclaved")
        await self.on.supervisor.halt("nsm")

    async def start_escrow(self) -> None:
        """As many keycrux services as it takes to share a key, on a machine of their own."""
        now, measured = SystemClock().now(), REPO / "bot/devstack"
        (self.folder / "keycrux-meta.json").write_text(self.escrow_people.meta(measured, now))
        await self._start_module("keycrux-nsm", measured, self.escrow_people)
        async with trio.open_nursery() as nursery:
            for number in range(1, ESCROW_SERVICES + 1):
                nursery.start_soon(self._start_keycrux, f"keycrux-{number}")

    async def _start_keycrux(self, name: str) -> None:
        arguments = {
            "--relay": self.relay_url,
            "--state": self.folder / name,
            "--nsm": self.folder / "keycrux-nsm.sock",
            "--root": self.root,
            "--meta": self.folder / "keycrux-meta.json",
            "--repo": ESCROW_SOURCE,
        }
        command = self._module("bot.devstack.keycrux", arguments)
        await self.on.supervisor.start(self.on.nursery, self._says_ready(name, command))

    async def ready(self) -> str:
        """The instance's pubkey, once it answers requests."""
        return str((await self._says("ready"))["pubkey"])

    async def halted(self) -> str:
        """Why the newest start does not go on."""
        return str((await self._says("halted"))["reason"])

    async def _says(self, event: str) -> dict[str, Any]:
        await until(lambda: len(self._said(event)) > self.before[event], READY_S)
        return self._said(event)[-1]

    def changed_image(self) -> Path:
        """The image with one file changed by a comment: other measurements, the same behaviour."""
        changed = self.folder / "image-2"
        for path in (p for p in self.image.rglob("*") if p.is_file() and p.suffix != ".pyc"):
            copy = changed / path.relative_to(self.image)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        with (changed / "bot/clock.py").open("a") as file:
            file.write("# changed\n")
        return changed

    def _said(self, event: str) -> list[dict[str, Any]]:
        path = self.folder / "enclaved.log"
        lines = path.read_text().splitlines() if path.exists() else []
        records = (
            json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")
        )
        return [record for record in records if record.get("event") == event]

    def _enclaved(self) -> Program:
        # Inside the engine's process and mount namespaces, so that it ends with them; on this machine's network.
        run = [PYTHON, "-m", "bot", "run", "--config", str(self.config)]
        command = ["env", f"PYTHONPATH={self.image}", *self.on.engine.enter(run, network=False)]
        port = int(self.relay_url.rpartition(":")[2])
        return Program("enclaved", command, after=("registry",), ready=lambda: listens(port))

    async def _start_module(self, name: str, image: Path, people: People) -> None:
        certificate = self.folder / f"{name}-builder.der"
        certificate.write_bytes(people.certificate_der)
        arguments = {
            "--authority": self.folder / "authority",
            "--image": image,
            "--instance-id": people.instance_id,
            "--certificate": certificate,
            "--socket": self.folder / f"{name}.sock",
        }
        command = self._module("bot.devstack.nsm", arguments)
        await self.on.supervisor.start(self.on.nursery, self._says_ready(name, command))

    def _module(self, module: str, arguments: dict[str, Any]) -> list[str]:
        words = [str(word) for pair in arguments.items() for word in pair]
        return in_repo(self.on.engine.enter([PYTHON, "-m", module, *words], network=False))

    def _says_ready(self, name: str, command: list[str]) -> Program:
        path = self.folder / f"{name}.log"
        before = path.read_text().count("ready") if path.exists() else 0

        async def ready() -> bool:
            return path.read_text().count("ready") > before

        return Program(name, command, after=("registry",), ready=ready)


async def found_enclave(on: Ground, config: Path, relay_url: str) -> Enclave:
    """An authority, people with keys, and the image as the wheel has it."""
    folder, now = on.place.folder, SystemClock().now()
    load_authority(folder / "authority", now)
    people = People.invent(SOURCE, INSTANCE_ID, now)
    escrow_people = People.invent(ESCROW_SOURCE, ESCROW_INSTANCE_ID, now)
    escrow = {"repo": ESCROW_SOURCE, "signer_pubkeys": [escrow_people.maintainer.pubkey]}
    policy = {
        "repo": SOURCE,
        "signer_pubkeys": [people.maintainer.pubkey],
        "escrow": escrow | {"services": ESCROW_SERVICES},
    }
    image = await trio.to_thread.run_sync(build_image, folder / "image-1", policy)
    return Enclave(on, config, relay_url, people, escrow_people, image)


def in_repo(command: list[str]) -> list[str]:
    """nsenter changes the working directory; Python finds the packages by path."""
    return ["env", f"PYTHONPATH={REPO}", *command]


async def listens(port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return False
    await stream.aclose()
    return True


async def until(condition: Callable[[], bool], seconds: float) -> None:
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - a file that another process writes has no event
            await trio.sleep(0.05)
