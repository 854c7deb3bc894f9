"""DEVELOPMENT ONLY. The whole world around one server, under one supervisor, cleaned up at the end."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from bot.devstack import registry
from bot.devstack.engine import EnginePlace, PrivateEngine, choose_place, free_port
from bot.devstack.sample import Image
from bot.supervisor import Program, Supervisor
from nips.keys import SecretKey
from nips.nip47 import format_uri

REPO = Path(__file__).resolve().parents[2]
BASE = Path("/var/tmp/enclaved-dev")
PYTHON = str(REPO / ".venv/bin/python")
REGISTRY_PORT = 5_000
Say = Callable[[str], None]


@dataclass(frozen=True)
class Ground:
    """A private Docker and a registry, running. ``enter`` wraps a command into the engine's namespaces."""

    place: EnginePlace
    supervisor: Supervisor
    nursery: trio.Nursery
    engine: PrivateEngine

    @property
    def registry_host(self) -> str:
        return f"{self.place.engine_address}:{REGISTRY_PORT}"

    async def push(self, repository: str, tag: str, image: Image) -> str:
        """Upload an image; its reference by tag."""
        await registry.push(self.registry_host, repository, tag, image)
        return f"{self.registry_host}/{repository}:{tag}"


@asynccontextmanager
async def ground(say: Say) -> AsyncIterator[Ground]:
    """Docker and registry. Leaves nothing behind, also after an earlier run that could not clean up."""
    _remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix="e", dir=BASE))
    (folder / "owner").write_text(str(os.getpid()))
    place = choose_place(folder)
    supervisor = Supervisor(folder)
    engine = PrivateEngine(place, REGISTRY_PORT)
    try:
        async with trio.open_nursery() as nursery:
            try:
                say("starting a private Docker in its own namespaces")
                await engine.start(supervisor, nursery)
                say(f"starting a registry on {place.engine_address}:{REGISTRY_PORT}")
                await _start_registry(engine, supervisor, nursery)
                yield Ground(place, supervisor, nursery, engine)
            finally:
                with trio.CancelScope(shield=True):
                    await supervisor.stop()
                nursery.cancel_scope.cancel()
    finally:
        engine.clean_up()


async def _start_registry(
    engine: PrivateEngine, supervisor: Supervisor, nursery: trio.Nursery
) -> None:
    place = engine.place
    address = f"{place.engine_address}:{REGISTRY_PORT}"
    path = place.folder / "registry.yml"
    path.write_text(registry.configuration(place.folder / "registry", address))
    command = engine.enter(["docker-registry", "serve", str(path)])
    ready = Program(
        "registry", command, after=("dockerd",), ready=lambda: registry.is_ready(address)
    )
    await supervisor.start(nursery, ready)


@dataclass(frozen=True)
class Stack:
    """Everything that a client needs to know."""

    ground: Ground
    relay_url: str
    public_url: str
    wallet_pubkey: str
    instance: SecretKey
    payer: SecretKey
    state: Path

    def payer_uri(self) -> str:
        """The payer's wallet, funded by the faucet. A secret."""
        return format_uri(self.wallet_pubkey, self.relay_url, self.payer)


@asynccontextmanager
async def stack(
    say: Say, policy: dict[str, Any], *, extension: bool = True
) -> AsyncIterator[Stack]:
    """`ground`, the wallet service, and ``enclaved`` with its embedded relay, all ready."""
    async with ground(say) as on:
        folder, keys = on.place.folder, [SecretKey.generate() for _ in range(4)]
        instance, wallet, client, payer = keys
        relay_url, public_url = (
            f"ws://127.0.0.1:{free_port()}",
            f"http://127.0.0.1:{free_port()}",
        )
        _write_key(folder / "state/instance.key", instance)
        _write_key(folder / "wallet/wallet.key", wallet)
        _write_secret(folder / "wallet.uri", format_uri(wallet.pubkey, relay_url, client))
        config = folder / "enclaved.toml"
        config.write_text(_configuration(on, relay_url, public_url, policy))
        say("starting enclaved, with its embedded relay")
        await on.supervisor.start(on.nursery, _enclaved(on, config, relay_url))
        say("starting the dev wallet, with a faucet for the payer")
        await on.supervisor.start(
            on.nursery, _wallet(on, relay_url, client.pubkey, payer.pubkey, extension=extension)
        )
        await _until(lambda: '"event": "ready"' in (folder / "enclaved.log").read_text(), 90)
        yield Stack(on, relay_url, public_url, wallet.pubkey, instance, payer, folder / "state")


def _enclaved(on: Ground, config: Path, relay_url: str) -> Program:
    # Inside the engine's process and mount namespaces, so that it ends with them; on this machine's network.
    command = on.engine.enter([PYTHON, "-m", "bot", "run", "--config", str(config)], network=False)
    port = int(relay_url.rpartition(":")[2])
    return Program(
        "enclaved", _in_repo(command), after=("registry",), ready=lambda: _listens(port)
    )


def _wallet(on: Ground, relay_url: str, admin: str, payer: str, *, extension: bool) -> Program:
    folder = on.place.folder
    arguments = [
        "--relay",
        relay_url,
        "--state",
        f"{folder}/wallet",
        "--admin",
        admin,
        "--fund",
        f"{payer}=1000000",
    ]
    if not extension:
        arguments.append("--ordinary")
    command = on.engine.enter([PYTHON, "-m", "bot.devstack.wallet", *arguments], network=False)

    async def ready() -> bool:
        return "ready" in (folder / "wallet.log").read_text()

    return Program("wallet", _in_repo(command), after=("enclaved",), ready=ready)


def _in_repo(command: list[str]) -> list[str]:
    # nsenter changes the working directory; Python finds the packages by path.
    return ["env", f"PYTHONPATH={REPO}", *command]


def _configuration(on: Ground, relay_url: str, public_url: str, policy: dict[str, Any]) -> str:
    folder, place = on.place.folder, on.place
    return _toml(
        {
            "server": {
                "name": "demo",
                "about": "A development instance.",
                "state_dir": f"{folder}/state",
                "log": "json",
            },
            "relays": {"embedded_port": int(relay_url.rpartition(":")[2])},
            "wallet": {"uri_file": f"{folder}/wallet.uri"},
            "engine": {
                "socket": str(place.socket),
                "cgroup_parent": place.cgroup_parent,
                "app_host": place.engine_address,
            },
            "registry": {"plain_http": [on.registry_host]},
            "http": {"port": int(public_url.rpartition(":")[2]), "public_url": public_url},
            "policy": policy,
        }
    )


def _toml(table: dict[str, Any], prefix: str = "") -> str:
    plain = {name: value for name, value in table.items() if not isinstance(value, dict)}
    lines = [f"[{prefix}]"] if prefix and plain else []
    lines += [f"{name} = {_toml_value(value)}" for name, value in plain.items()]
    for name, value in table.items():
        if isinstance(value, dict):
            lines.append(_toml(value, f"{prefix}.{name}" if prefix else name))
    return "\n".join(lines)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    return str(value) if isinstance(value, int) else f'"{value}"'


def _write_key(path: Path, key: SecretKey) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    _write_secret(path, key.reveal_secret().hex())


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


async def _listens(port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return False
    await stream.aclose()
    return True


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - a file that another process writes has no event
            await trio.sleep(0.05)


def _remove_leftovers() -> None:
    """Folders of runs whose process is gone: their namespaces went with it, their files did not."""
    BASE.mkdir(exist_ok=True, mode=0o711)
    for folder in BASE.glob("e*"):
        owner = folder / "owner"
        if not owner.exists() or not Path(f"/proc/{owner.read_text()}").exists():
            shutil.rmtree(folder, ignore_errors=True)
