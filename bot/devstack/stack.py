"""DEVELOPMENT ONLY. The whole world around one server, under one supervisor, cleaned up at the end."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.boot.supervisor import Program
from bot.devstack.enclave import PYTHON, Enclave, found_enclave, in_repo
from bot.devstack.engine import free_port
from bot.devstack.ground import Ground, Say, ground
from nips.keys import SecretKey
from nips.nip47 import format_uri


@dataclass(frozen=True)
class Stack:
    """Everything that a client needs to know. ``instance`` is its pubkey."""

    ground: Ground
    enclave: Enclave
    relay_url: str
    public_url: str
    wallet_pubkey: str
    instance: str
    payer: SecretKey
    state: Path

    def payer_uri(self) -> str:
        """The payer's wallet, funded by the faucet. A secret."""
        return format_uri(self.wallet_pubkey, self.relay_url, self.payer)


@asynccontextmanager
async def stack(
    say: Say,
    policy: dict[str, Any],
    *,
    extension: bool = True,
    relay_limits: dict[str, int] | None = None,
    dockerd_may_pull: bool = False,
    registries: Sequence[str] = (),
    has_parent: bool = False,
) -> AsyncIterator[Stack]:
    """`ground`, the wallet service, and ``enclaved`` with its embedded relay, all ready.

    ``registries``: more of them, spoken to as the ground's own. ``has_parent``: the state is lost with the power, and
    comes back from checkpoints at the parent; else it is on this machine's disk.
    """
    async with ground(say, dockerd_may_pull=dockerd_may_pull) as on:
        folder, keys = on.place.folder, [SecretKey.generate() for _ in range(3)]
        wallet, client, payer = keys
        relay_url, public_url = (
            f"ws://127.0.0.1:{free_port()}",
            f"http://127.0.0.1:{free_port()}",
        )
        write_key(folder / "wallet/wallet.key", wallet)
        write_secret(folder / "wallet.uri", format_uri(wallet.pubkey, relay_url, client))
        config = folder / "enclaved.toml"
        enclave = await found_enclave(on, config, relay_url, has_parent=has_parent)
        told = _configuration(on, relay_url, public_url, policy)
        for name, section in enclave.configuration().items():
            told[name] = told.get(name, {}) | section
        told["relays"]["embedded_limits"] = relay_limits or {}
        told["registry"]["plain_http"] += registries
        config.write_text(toml(told))
        if has_parent:
            say("starting the parent, which keeps what it cannot read")
            await enclave.start_parent()
            await enclave.make_disks()
        say("starting enclaved in its image, with its embedded relay")
        await enclave.start()
        say("starting a dev key escrow (three keycrux services, two must come together)")
        await enclave.start_escrow()
        say("starting the dev wallet, with a faucet for the payer")
        await on.supervisor.start(
            on.nursery,
            wallet_program(on, relay_url, client.pubkey, payer.pubkey, extension=extension),
        )
        instance = await enclave.ready()
        yield Stack(
            on, enclave, relay_url, public_url, wallet.pubkey, instance, payer, folder / "state"
        )


def wallet_program(
    on: Ground, relay_url: str, admin: str, payer: str, *, extension: bool, after: str = "enclaved"
) -> Program:
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

    return Program("wallet", in_repo(command), after=(after,), ready=ready)


def _configuration(
    on: Ground, relay_url: str, public_url: str, policy: dict[str, Any]
) -> dict[str, Any]:
    folder, place = on.place.folder, on.place
    return {
        "server": {
            "name": "demo",
            "about": "A development instance.",
            "state_dir": f"{folder}/state",
            "log": "json",
        },
        # Everybody's relay here: payers, services and maintainers of this little world all meet on it.
        "relays": {
            "embedded_port": int(relay_url.rpartition(":")[2]),
            "embedded_open": True,
        },
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


def toml(table: dict[str, Any], prefix: str = "") -> str:
    plain = {name: value for name, value in table.items() if not isinstance(value, dict)}
    lines = [f"[{prefix}]"] if prefix and plain else []
    lines += [f"{name} = {_toml_value(value)}" for name, value in plain.items()]
    for name, value in table.items():
        if isinstance(value, dict):
            lines.append(toml(value, f"{prefix}.{name}" if prefix else name))
    return "\n".join(lines)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    return str(value) if isinstance(value, int) else f'"{value}"'


def write_key(path: Path, key: SecretKey) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_secret(path, key.reveal_secret().hex())


def write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
