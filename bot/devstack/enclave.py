"""DEVELOPMENT ONLY. What stands in for the enclave: an image folder, a module that measures it, key escrow.

`Enclave` starts ``enclaved`` from the image, and again from another one: a restart, or an upgrade.
"""

import json
import shutil
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
from bot.parent.client import ParentChannel, ParentSilent
from netstack.control import call
from netstack.vsock import parse_address

PYTHON = str(REPO / ".venv/bin/python")
SOURCE, ESCROW_SOURCE = "https://example.com/enclaved", "https://example.com/keycrux"
# Two machines: escrow does not run on the one whose keys it keeps.
INSTANCE_ID, ESCROW_INSTANCE_ID = "i-0de0000000000001", "i-0de0000000000002"
# Three, so that none of them knows the key.
ESCROW_SERVICES = 3
READY_S = 90
# The last checkpoint is made meanwhile.
STOP_S = 40
DISKS_BYTES = 1 << 30


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
    # With a parent, the state lies in memory that is lost with the power, and the parent keeps its checkpoints.
    has_parent: bool = False
    module_ahead_s: int = 0

    @property
    def folder(self) -> Path:
        return self.on.place.folder

    @property
    def root(self) -> Path:
        """The development root, for ``enclaved verify --dev-root``."""
        return self.folder / "authority/root.pem"

    def configuration(self) -> dict[str, Any]:
        """What ``enclaved`` must be told about its attestation and escrow."""
        attestation = {"nsm": str(self._nsm_socket), "development_root": str(self.root)}
        if self.has_parent:
            return {
                "attestation": attestation,
                "parent": {"address": self._parent_address, "checkpoint_every_s": 10},
                "engine": {"disks": str(self._disks)},
            }
        return {"attestation": attestation | {"meta_file": str(self.folder / "meta.json")}}

    @property
    def _parent_address(self) -> str:
        return f"unix:{self.folder}/vsock.sock"

    @property
    def parent_config(self) -> Path:
        """For ``enclaved parent status|logs|backups|shutdown --config``."""
        return self.folder / "parent.toml"

    async def start_parent(self) -> None:
        """The untrusted side, as a process of its own."""
        self._write_parent_config()
        run = [PYTHON, "-m", "bot", "parent", "run", "--config", str(self.parent_config)]
        command = in_repo(self._enter_parent(run))
        channel = ParentChannel(parse_address(self._parent_address))

        async def ready() -> bool:
            try:
                return await channel.ask("get_ip") is not None
            except ParentSilent:
                return False

        program = Program("parent", command, after=("registry",), ready=ready)
        await self.on.supervisor.start(self.on.nursery, program)

    def _enter_parent(self, command: list[str]) -> list[str]:
        return self.on.engine.enter(command, network=False)

    def _write_parent_config(self) -> None:
        self.parent_config.write_text(
            f'listen = "{self._parent_address}"\noperator = "{self._operator}"\n'
            f'state = "{self.folder}/parent"\ninstance = "{self.folder}/instance"\nip = "192.0.2.1"\n'
        )

    @property
    def _operator(self) -> str:
        return f"unix:{self.folder}/operator.sock"

    async def status(self) -> dict[str, Any]:
        """What ``enclaved parent status`` shows."""
        status = await call(parse_address(self._operator), "status")
        return json.loads(json.dumps(status))  # type: ignore[no-any-return]

    async def shut_down(self) -> None:
        """``enclaved parent shutdown``."""
        await call(parse_address(self._operator), "shutdown")

    @property
    def _disks(self) -> Path:
        return self.folder / "disks"

    async def make_disks(self) -> None:
        """Memory for containers' disks, in the engine's mount namespace."""
        self._disks.mkdir()
        size = f"size={DISKS_BYTES},mode=711"
        await trio.run_process(
            self.on.engine.enter(["mount", "-t", "tmpfs", "-o", size, "disks", str(self._disks)])
        )

    async def _empty_disks(self) -> None:
        forget = (
            'docker -H "$0" ps -aq | xargs -r docker -H "$0" rm -f -v; docker -H "$0" volume prune -f;'
            ' grep -o "$1/at/[^ ]*" /proc/mounts | xargs -r umount; find "$1" -type f -delete'
        )
        socket = f"unix://{self.on.place.socket}"
        command = self.on.engine.enter(["sh", "-c", forget, socket, str(self._disks)])
        await trio.run_process(command, capture_stdout=True)

    async def cut_power(self) -> None:
        """kill -9, and whatever was in the enclave's memory is gone: its files, and every container.

        The relay's file stays: here it stands for relays elsewhere, on which everybody of this little world meets.
        """
        await self.on.supervisor.kill("enclaved")
        await self.stop_module()
        await self._empty_disks()
        state = self.folder / "state"
        for path in await trio.to_thread.run_sync(lambda: list(state.iterdir())):
            if path.is_file() and not path.name.startswith("relay.sqlite"):
                path.unlink()

    async def start(self, *, signed: bool = True) -> None:
        """The module with the image's measurements, then ``enclaved``; returns when its relay listens."""
        self.before = {event: len(self.said(event)) for event in ("ready", "halted")}
        now = SystemClock().now()
        self._write_meta(self.people.meta(self.measured, now, signed=signed))
        await self.start_module()
        await self._start_enclave()

    async def start_module(self) -> None:
        """The module that attests the enclave; ``module_ahead_s``: by how much its clock is wrong."""
        await self._start_module("nsm", self.measured, self.people, self._nsm_socket)

    @property
    def measured(self) -> Path:
        """What the module takes for the image."""
        return self.image

    async def stop_module(self) -> None:
        await self.on.supervisor.halt("nsm")

    async def _start_enclave(self) -> None:
        await self.on.supervisor.start(self.on.nursery, self._enclaved())

    @property
    def _nsm_socket(self) -> Path:
        return self.folder / "nsm.sock"

    @property
    def _log(self) -> Path:
        return self.folder / "enclaved.log"

    def _write_meta(self, meta: str) -> None:
        """For the server itself, and as the operator's folder that a parent reads."""
        (self.folder / "meta.json").write_text(meta)
        told, instance = json.loads(meta), self.folder / "instance"
        shutil.rmtree(instance, ignore_errors=True)
        (instance / "releases").mkdir(parents=True)
        for name in ("build", "instance"):
            (instance / f"{name}.json").write_text(json.dumps(told[name]))
        for number, release in enumerate(told["releases"]):
            (instance / f"releases/{number}.json").write_text(json.dumps(release))

    async def stop(self) -> None:
        await self.on.supervisor.halt("enclaved")
        await self.stop_module()

    async def start_escrow(self) -> None:
        """As many keycrux services as it takes to share a key, on a machine of their own."""
        now, measured = SystemClock().now(), REPO / "bot/devstack"
        (self.folder / "keycrux-meta.json").write_text(self.escrow_people.meta(measured, now))
        socket = self.folder / "keycrux-nsm.sock"
        await self._start_module("keycrux-nsm", measured, self.escrow_people, socket)
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
        await until(lambda: len(self.said(event)) > self.before[event], READY_S)
        return self.said(event)[-1]

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

    def said(self, event: str) -> list[dict[str, Any]]:
        path = self._log
        lines = path.read_text().splitlines() if path.exists() else []
        records = (
            json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")
        )
        return [record for record in records if record.get("event") == event]

    def _enclaved(self) -> Program:
        # Inside the engine's process and mount namespaces, so that it ends with them; on this machine's network.
        run = [PYTHON, "-m", "bot", "run", "--config", str(self.config)]
        # nsenter waits for what it started, and must not end before it: signals pass it by.
        patient = ["sh", "-c", 'trap "" TERM; exec "$@"', "sh"]
        entered = self.on.engine.enter(run, network=False)
        command = [*patient, "env", f"PYTHONPATH={self.image}", *entered]
        port = int(self.relay_url.rpartition(":")[2])
        return Program(
            "enclaved", command, after=("registry",), ready=lambda: listens(port), stop_s=STOP_S
        )

    async def _start_module(self, name: str, image: Path, people: People, socket: Path) -> None:
        certificate = self.folder / f"{name}-builder.der"
        certificate.write_bytes(people.certificate_der)
        arguments = {
            "--authority": self.folder / "authority",
            "--image": image,
            "--instance-id": people.instance_id,
            "--certificate": certificate,
            "--socket": socket,
            "--ahead": self.module_ahead_s if name == "nsm" else 0,
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


async def found_enclave(
    on: Ground, config: Path, relay_url: str, *, has_parent: bool = False
) -> Enclave:
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
    return Enclave(on, config, relay_url, people, escrow_people, image, has_parent=has_parent)


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
