"""DEVELOPMENT ONLY. The whole world of an enclave, each machine in namespaces of its own.

this machine ── internet (relay, registry, wallet, key escrow) ── parent ══ Unix stream ══ enclave ── containers

The enclave's root is that of the image that ships, under a layer with its configuration; nothing else of this checkout runs inside.
"""

import json
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from bot.adapters.relay_events import RelayEvents
from bot.boot.supervisor import Program, Supervisor
from bot.clock import SystemClock
from bot.devstack import registry
from bot.devstack.authority import load_authority
from bot.devstack.enclave import (
    ESCROW_INSTANCE_ID,
    ESCROW_SERVICES,
    ESCROW_SOURCE,
    INSTANCE_ID,
    PYTHON,
    SOURCE,
    Enclave,
    in_repo,
)
from bot.devstack.engine import EnginePlace
from bot.devstack.ground import Ground, Say, own_folder
from bot.devstack.image import People
from bot.devstack.sample import Image
from bot.devstack.spaces import Booted, Space, join, run
from bot.devstack.stack import Stack, toml, wallet_program, write_key, write_secret
from bot.devstack.wallet_image import wallet_image
from bot.image import build
from bot.image.root import PACKAGES
from nips import kinds
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip47 import format_uri

RELAY_PORT = 7_777
CONTAINER_PORT = 7_070
# The dev wallet is Python: it needs the memory of three.
WALLET_UNITS = 3
MIB = 1 << 20


@dataclass(frozen=True)
class Own:
    """A container of the instance's own."""

    image: Image
    units: int = 1
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Net:
    """Addresses: the internet's are public ones, because an enclave refuses to talk to others."""

    number: int

    @property
    def internet(self) -> str:
        return f"54.0.{self.number}.1"

    @property
    def parent(self) -> str:
        return f"54.0.{self.number}.2"

    @property
    def host(self) -> tuple[str, str]:
        return f"10.214.{self.number}.1", f"10.214.{self.number}.2"


@dataclass(frozen=True)
class Scene:
    """What is asked of the whole stack."""

    policy: dict[str, Any]
    kind: str
    builtins: Mapping[str, Own]
    own_wallet: bool
    enclave_of: "type[WholeEnclave]"


@dataclass(kw_only=True)
class WholeEnclave(Enclave):
    """As `Enclave`, but a machine that boots. ``image`` is the layer over the root: with it, another image."""

    parent_space: Space
    machine: Booted
    kind: str
    server: dict[str, Any]

    @property
    def _parent_address(self) -> str:
        return f"unix:{self.machine.outside('parent')}"

    def _enter_parent(self, command: list[str]) -> list[str]:
        return self.parent_space.enter(command)

    def _write_parent_config(self) -> None:
        network = self.folder / "parent-net.toml"
        network.write_text(toml(self._network("parent")))
        super()._write_parent_config()
        with self.parent_config.open("a") as file:
            file.write(f'network = "{network}"\n')

    def _network(self, end: str) -> dict[str, Any]:
        def at(wire: str) -> str:
            return (
                f"unix:{self.machine.outside(wire)}"
                if end == "parent"
                else self.machine.inside(wire)
            )

        out, back = at("out"), at("in")
        told: dict[str, Any] = {name: at(name) for name in ("packets", "control")}
        told["plane"] = {"kind": self.kind}
        if end == "parent":
            uplink = {"uplink": "to-internet", "state": f"{self.folder}/parent-net"}
            return uplink | told | {"raw_listen": out, "raw_peer": back}
        inside = {"services": [CONTAINER_PORT]}
        return told | {"raw_listen": back, "raw_peer": out, "inside": inside}

    def write_layer(self, layer: Path, policy: dict[str, Any], builtins: dict[str, Any]) -> None:
        """Configuration and release policy, measured with the image; ``image`` names what lies below."""
        etc = layer / "etc/enclaved"
        etc.mkdir(parents=True)
        release = layer / PACKAGES / "bot/release.json"
        release.parent.mkdir(parents=True)
        release.write_text(json.dumps(policy))
        (etc / "image").write_text(self.machine.image.name)
        (etc / "development").write_text(
            "DEVELOPMENT ONLY: what this machine lacks of an enclave is passed over.\n"
        )
        shutil.copy(self.root, etc / "root.pem")
        shutil.copy(self.folder / "wallet.uri", etc / "wallet.uri")
        (etc / "enclaved.json").write_text(json.dumps({"containers": builtins}))
        (etc / "enclaved.toml").write_text(toml(self.server))
        (etc / "network.toml").write_text(toml(self._network("enclave")))

    def changed_image(self) -> Path:
        changed = self.folder / "layer-2"
        shutil.copytree(self.image, changed)
        (changed / "etc/enclaved/note").write_text("another image\n")
        return changed

    async def _start_enclave(self) -> None:
        self.machine.power_on(self.image)
        await trio.lowlevel.checkpoint()

    async def stop(self) -> None:
        """The operator's order; it saves itself, and switches itself off."""
        await self.shut_down()
        with trio.fail_after(90):
            await self.machine.ended()
        await self.stop_module()

    async def cut_power(self) -> None:
        await trio.to_thread.run_sync(self.machine.cut_power)
        await self.stop_module()

    @property
    def _nsm_socket(self) -> Path:
        return self.machine.outside("nsm")

    @property
    def _log(self) -> Path:
        return self.machine.folder / "log/server.log"


@asynccontextmanager
async def whole_stack(
    say: Say,
    policy: dict[str, Any],
    *,
    kind: str = "tun",
    builtins: Mapping[str, Own] | None = None,
    own_wallet: bool = False,
    machine_of: "type[Booted]" = Booted,
    enclave_of: "type[WholeEnclave]" = WholeEnclave,
) -> AsyncIterator[Stack]:
    """As `bot.devstack.stack.stack`, but the enclave is a machine. ``kind``: the data plane, tun or nfqueue. ``builtins``:
    the instance's own containers, by name; ``own_wallet``: the wallet is one more of them; ``machine_of``, ``enclave_of``: what
    stands for the machine."""
    say("building the enclave's root from the lock (some minutes the first time)")
    image = await trio.to_thread.run_sync(build.root)
    folder = own_folder()
    net = Net(_free_number())
    supervisor = Supervisor(folder)
    machine = machine_of(folder / "enclave", image)
    try:
        async with trio.open_nursery() as nursery:
            try:
                say("starting internet and parent in namespaces of their own")
                internet, parent = Space("internet"), Space("parent-space")
                for space in (internet, parent):
                    await space.start(supervisor, nursery)
                await _wire(net, internet, parent)
                place = EnginePlace(folder, machine.name, net.internet, net.parent)
                on = Ground(place, supervisor, nursery, internet)
                scene = Scene(policy, kind, dict(builtins or {}), own_wallet, enclave_of)
                yield await _populate(on, say, scene, net, parent, machine)
            finally:
                with trio.CancelScope(shield=True):
                    machine.cut_power()
                    await supervisor.stop()
                nursery.cancel_scope.cancel()
    finally:
        machine.cut_power()
        shutil.rmtree(folder, ignore_errors=True)


def _free_number() -> int:
    used = subprocess.check_output(["ip", "-4", "addr"], text=True)
    return secrets.choice([n for n in range(1, 255) if f" 10.214.{n}." not in used])


async def _wire(net: Net, internet: Space, parent: Space) -> None:
    await join(internet, net.internet, parent, net.parent, 24)
    await parent.do(f"ip route add default via {net.internet}")
    ours, theirs = net.host
    await internet.join_here(f"encl{net.number}", ours, "to-host", theirs)
    await internet.do(
        # An enclave talks to nobody in private networks: to it, we are the internet.
        f"iptables -t nat -A POSTROUTING -o to-{parent.name} -s {ours} -j MASQUERADE",
    )
    await run("ip", "route", "add", f"54.0.{net.number}.0/24", "via", theirs)


async def _populate(
    on: Ground, say: Say, scene: Scene, net: Net, parent: Space, machine: Booted
) -> Stack:
    folder, (wallet, client, payer) = on.place.folder, [SecretKey.generate() for _ in range(3)]
    relay_url = f"ws://{net.internet}:{RELAY_PORT}"
    write_key(folder / "wallet/wallet.key", wallet)
    write_secret(folder / "wallet.uri", format_uri(wallet.pubkey, relay_url, client))
    say("starting relay, registry and key escrow on the internet")
    await _start_relay(on, relay_url)
    await _start_registry(on)
    own = dict(scene.builtins)
    if scene.own_wallet:
        say("packing the dev wallet as a container of the enclave's own")
        own["wallet"] = await _wallet(relay_url, payer)
    named = {name: await _pushed(on, name, container) for name, container in own.items()}
    enclave = _found(on, relay_url, net, parent, machine, scene, named)
    await enclave.start_escrow()
    if not scene.own_wallet:
        say("starting the dev wallet, with a faucet for the payer")
        program = wallet_program(
            on, relay_url, client.pubkey, payer.pubkey, extension=True, after="relay"
        )
        await on.supervisor.start(on.nursery, program)
    say("starting the parent, which keeps what it cannot read")
    await enclave.start_parent()
    say("power on")
    await enclave.start()
    instance = await enclave.ready()
    service = await _announced_wallet(relay_url, instance)
    return Stack(on, enclave, relay_url, "", service, instance, payer, folder / "state")


async def _wallet(relay_url: str, payer: SecretKey) -> Own:
    env = {"NWC_RELAYS": relay_url, "WALLET_FUND": f"{payer.pubkey}=10000000"}
    return Own(await trio.to_thread.run_sync(wallet_image), WALLET_UNITS, env)


async def _announced_wallet(relay_url: str, instance: str) -> str:
    """The key of the wallet that the instance says it has."""
    events = RelayEvents([relay_url])
    wanted = Filter(authors=frozenset({instance}), kinds=frozenset({kinds.ANNOUNCEMENT}))
    with trio.fail_after(60):
        while True:
            for event in await events.find([wanted], [relay_url]):
                if told := event.tag("wallet"):
                    return told
            await trio.sleep(0.3)


def _found(
    on: Ground,
    relay_url: str,
    net: Net,
    parent: Space,
    machine: Booted,
    scene: Scene,
    builtins: dict[str, Any],
) -> WholeEnclave:
    folder, now = on.place.folder, SystemClock().now()
    load_authority(folder / "authority", now)
    people = People.invent(SOURCE, INSTANCE_ID, now)
    escrow_people = People.invent(ESCROW_SOURCE, ESCROW_INSTANCE_ID, now)
    layer = folder / "layer-1"
    enclave = scene.enclave_of(
        on, folder / "unused.toml", relay_url, people, escrow_people, layer, has_parent=True,
        parent_space=parent, machine=machine, kind=scene.kind, server=_server(net, relay_url, on, scene, machine),
    )  # fmt: skip
    escrow = {"repo": ESCROW_SOURCE, "signer_pubkeys": [escrow_people.maintainer.pubkey]}
    enclave.write_layer(
        layer,
        {
            "repo": SOURCE,
            "signer_pubkeys": [people.maintainer.pubkey],
            "escrow": escrow | {"services": ESCROW_SERVICES},
        },
        builtins,
    )
    return enclave


def _server(net: Net, relay_url: str, on: Ground, scene: Scene, machine: Booted) -> dict[str, Any]:
    """The enclave's one configuration, as an operator would write it."""
    from_outside = {"uri_file": "/etc/enclaved/wallet.uri"}
    # A wallet with a Python of its own is no small image.
    images_bytes = (512 if scene.own_wallet else 256) * MIB
    return {
        "server": {
            "name": "demo",
            "about": "A development instance.",
            "log": "json",
            "builtins": "/etc/enclaved/enclaved.json",
        },
        "relays": {"urls": [relay_url]},
        "wallet": {"builtin": "wallet"} if scene.own_wallet else from_outside,
        "engine": {
            "socket": "/run/enclaved/docker.sock",
            "cgroup_parent": "/tenants",
            "app_host": net.parent,
            "disks": "/var/lib/disks",
            "masquerade": False,
        },
        "registry": {"plain_http": [on.registry_host]},
        "containers": {"port": CONTAINER_PORT},
        "network": {"control": "/run/netstack/control.sock"},
        "parent": {"address": machine.inside("parent"), "checkpoint_every_s": 10},
        "attestation": {
            **machine.module,
            "development_root": "/etc/enclaved/root.pem",
        },
        "boot": {
            "network": "/etc/enclaved/network.toml",
            "log_dir": "/run/log",
            "state_bytes": 256 * MIB,
            "fetched_bytes": images_bytes,
            "layers_bytes": 512 * MIB,
            "incoming_bytes": images_bytes,
        },
        # Few, so that a small machine has the memory for all of them.
        "policy": scene.policy
        | {"capacity": {"total_units": 10, **scene.policy.get("capacity", {})}},
    }


async def _pushed(on: Ground, name: str, own: Own) -> dict[str, Any]:
    """As ``enclaved.json`` has it."""
    await on.push(f"own/{name}", "1", own.image)
    image = f"{on.registry_host}/own/{name}@{own.image.digest}"
    return {"image": image, "units": own.units, "env": dict(own.env)}


async def _start_relay(on: Ground, url: str) -> None:
    command = [
        PYTHON,
        "-m",
        "bot.devstack.relay",
        "--url",
        url,
        "--state",
        f"{on.place.folder}/relay.sqlite",
    ]
    log = on.place.folder / "relay.log"

    async def ready() -> bool:
        return "ready" in log.read_text()

    await on.supervisor.start(
        on.nursery,
        Program("relay", in_repo(on.engine.enter(command)), after=("internet",), ready=ready),
    )


async def _start_registry(on: Ground) -> None:
    path = on.place.folder / "registry.yml"
    path.write_text(registry.configuration(on.place.folder / "registry", on.registry_host))
    command = on.engine.enter(["docker-registry", "serve", str(path)])
    await on.supervisor.start(
        on.nursery,
        Program(
            "registry",
            command,
            after=("internet",),
            ready=lambda: registry.is_ready(on.registry_host),
        ),
    )
