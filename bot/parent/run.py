"""The parent as a whole: its configuration, and everything it runs. netstack is a process of its own, kept running."""

import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import trio

from bot.boot.supervisor import Program, Supervisor
from bot.checkpoint.folder import Folder
from bot.parent.operator import Operator
from bot.parent.server import ParentServer
from bot.parent.store import BlobStore, Remote
from netstack import vsock


class BadParentConfig(Exception):
    """The message says what to change."""


@dataclass(frozen=True)
class ParentConfig:
    """``network``: netstack's configuration; without it no network is carried. ``remote``: where blobs are copied to,
    as rclone writes it; ``rclone_config`` is rclone's own file. ``ip``: what the enclave is told of this host."""

    state: Path = Path("/var/lib/enclaved-parent")
    instance: Path = Path("instance")
    listen: vsock.Address = vsock.parse_address("vsock:any:1090")
    peer_cid: int | None = None
    operator: vsock.Address = vsock.parse_address("unix:/run/enclaved/parent.sock")
    ip: str = ""
    prod: bool = False
    remote: str = ""
    rclone_config: Path | None = None
    network: Path | None = None


_READERS: dict[Any, Callable[[Any], Any]] = {
    Path: Path,
    Path | None: Path,
    vsock.Address: vsock.parse_address,
}


def load_parent(path: Path) -> ParentConfig:
    """Raises `BadParentConfig`."""
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise BadParentConfig(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadParentConfig(f"{path} is not TOML: {error}") from error
    declared = get_type_hints(ParentConfig)
    if unknown := table.keys() - declared.keys():
        known = ", ".join(field.name for field in fields(ParentConfig))
        raise BadParentConfig(f"{path}: unknown name {min(unknown)!r}; known: {known}")
    return ParentConfig(**{n: _value(n, v, declared[n]) for n, v in table.items()})


def _value(name: str, value: object, kind: Any) -> Any:
    wanted = str if kind in _READERS else int if kind == int | None else kind
    if type(value) is not wanted:
        raise BadParentConfig(f"{name} must be a {wanted.__name__}, not {value!r}")
    try:
        return _READERS.get(kind, wanted)(value)
    except ValueError as error:
        raise BadParentConfig(f"{name}: {error}") from error


async def run(config: ParentConfig) -> None:
    """Until cancelled. Raises OSError, `ProgramFailed`, `RemoteFailed`."""
    folder = Folder(config.state / "blobs")
    remote = Remote(folder.path, config.remote, config.rclone_config) if config.remote else None
    if remote is not None:
        # Before anybody asks whether there is a backup: this disk may be new.
        await remote.bring_back()
    store = BlobStore(folder, remote)
    server = ParentServer(store, config.instance, config.ip, prod=config.prod)
    supervisor = Supervisor(config.state)
    async with trio.open_nursery() as nursery:
        listener = await vsock.listen(config.listen)
        nursery.start_soon(server.serve, listener, config.peer_cid)
        nursery.start_soon(Operator(server, store, remote).serve, config.operator)
        if remote is not None:
            nursery.start_soon(remote.run)
        try:
            if config.network is not None:
                await supervisor.start(nursery, _netstack(config.network))
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await supervisor.stop()


def _netstack(config: Path) -> Program:
    """It is ready when an enclave has come, which may be never: nobody waits for that."""
    command = [sys.executable, "-m", "netstack", "parent", "--config", str(config)]
    return Program("netstack", command)
