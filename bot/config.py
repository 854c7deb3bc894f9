"""The configuration: one frozen value, read once from a TOML file and the environment.

Secrets do not stand in the file: they come from files of their own, or from the environment
(``ENCLAVED_WALLET_URI``). Every mistake is reported with its section and name.
"""

import os
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from bot.adapters.registry_client import RegistryConfig
from bot.server.inbox import InboxPolicy
from handlers.context import Policy
from netstack.vsock import Address, parse_address
from nips.crypto import is_pubkey
from nips.errors import BadKey
from nips.nip11 import RelayLimits
from nips.nip19 import pubkey_from_npub_untrusted
from nips.nip47 import WalletUri, parse_uri
from nips.relay_url import normal_url, parse_relay_url_untrusted

T = TypeVar("T")


def images_folder(state_dir: Path) -> Path:
    """Where images lie while they are fetched."""
    return state_dir / "images"


class ConfigError(Exception):
    """The configuration cannot be used; the message says what to change."""


@dataclass(frozen=True)
class ServerConfig:
    """Who we are, and where our state lies."""

    name: str = "enclaved"
    about: str = "Runs containers for sats."
    repo: str = ""
    state_dir: Path = Path("/var/lib/enclaved")
    # Containers of the instance's own, measured with its image: enclaved.json.
    builtins: Path | None = None
    # console for a person, json for a collector
    log: str = "console"
    log_level: str = "info"


@dataclass(frozen=True)
class RelaysConfig:
    """``urls``: relays to listen and publish on. The embedded relay is used too when it has a port."""

    urls: tuple[str, ...] = ()
    embedded_host: str = "127.0.0.1"
    # 0: no embedded relay
    embedded_port: int = 0
    # How others reach the embedded relay; default ws://host:port
    embedded_url: str | None = None
    # Development: it keeps everybody's events. Else it is our inbox, and keeps what is by or to us.
    embedded_open: bool = False
    # Whom it serves beside ourselves, our containers and our wallet (npub or hex): escrow that announces itself here.
    embedded_serves: tuple[str, ...] = ()
    embedded_limits: RelayLimits = RelayLimits()

    def __post_init__(self) -> None:
        urls = (normal_url(parse_relay_url_untrusted(url)) for url in self.urls)
        object.__setattr__(self, "urls", tuple(dict.fromkeys(urls)))
        try:
            self.served_pubkeys()
        except BadKey as error:
            raise ValueError(f"embedded_serves: {error}") from error

    def served_pubkeys(self) -> frozenset[str]:
        """``embedded_serves`` as hex."""
        return frozenset(
            key if is_pubkey(key) else pubkey_from_npub_untrusted(key)
            for key in self.embedded_serves
        )


@dataclass(frozen=True)
class WalletConfig:
    """The connection URI is a secret: name a file with it, or set ``ENCLAVED_WALLET_URI``. Or the wallet is a container of
    the instance's own, ``builtin``: then there is no URI from outside."""

    builtin: str | None = None
    uri_file: Path | None = None
    # Accept invoices that pay another node than the one the wallet names (custodial wallets).
    any_payee: bool = False


@dataclass(frozen=True)
class EngineConfig:
    """The Docker engine to run containers on."""

    socket: str = "/var/run/docker.sock"
    # As given to dockerd; its default is /docker.
    cgroup_parent: str = "/docker"
    publish_host: str = "0.0.0.0"  # noqa: S104 - tenants' ports are meant to be reached
    # The address under which published ports are announced.
    app_host: str = "127.0.0.1"
    # Containers' disks are images of a fixed size in this folder. Without it nothing limits what they write.
    disks: Path | None = None
    # False where netstack translates containers' addresses: two translations would compete for ports.
    masquerade: bool = True


@dataclass(frozen=True)
class AttestationConfig:
    """Who attests us. Without ``nsm`` we run outside of an enclave, and say so.

    ``development_root`` names the certificate of a development authority; it replaces AWS's root, so
    everything of ours is ``debug`` then.
    """

    # /dev/nsm, or the socket of a development module; others must not be able to open it.
    nsm: Path | None = None
    # DEVELOPMENT ONLY: a simulator that runs at the parent's side, by its address.
    development_nsm: str = ""
    development_root: Path | None = None
    # What the parent hands over: builder's, launcher's and release signatures, as JSON.
    meta_file: Path | None = None

    def __post_init__(self) -> None:
        if self.development_nsm:
            parse_address(self.development_nsm)
            if self.nsm is not None or self.development_root is None:
                raise ValueError("development_nsm stands with a development_root, and without nsm")

    @property
    def is_attested(self) -> bool:
        """Whether there is a module, of any kind."""
        return self.nsm is not None or bool(self.development_nsm)


@dataclass(frozen=True)
class EscrowConfig:
    """Which services to believe stands in the image (``bot/release.json``), not here."""

    # Where they announce themselves; default: our own relays.
    relays: tuple[str, ...] = ()
    # While it is unsure whether our key can be had, try so long.
    halt_after_s: int = 300


@dataclass(frozen=True)
class ContainersConfig:
    """The channel on which apps inside containers prove their keys. 0: none.

    It must be reachable from containers' bridges; who is no container of ours is refused there.
    """

    host: str = "0.0.0.0"  # noqa: S104 - who asks is known by his address and a token
    port: int = 0


@dataclass(frozen=True)
class NetworkConfig:
    """In an enclave: netstack's socket, by which ports are opened. Without it, the host's own network."""

    control: Path | None = None


@dataclass(frozen=True)
class ParentConfig:
    """In an enclave: the channel to its parent, who keeps our checkpoints and hands over what he claims. Without it the
    state lives on this machine's own disk."""

    address: str = ""
    # How often everything that changed is copied; the books are copied as soon as somebody waits for them.
    checkpoint_every_s: int = 60

    def __post_init__(self) -> None:
        if self.address:
            parse_address(self.address)
        if self.checkpoint_every_s < 1:
            raise ValueError("checkpoint_every_s is at least 1")


@dataclass(frozen=True)
class BootConfig:
    """In an enclave: what ``enclaved boot`` runs around the server, and how it divides memory. An enclave's disk is its memory,
    so every folder that grows is a file system of a fixed size."""

    # Netstack's configuration. Without it the network is there already.
    network: Path | None = None
    # Sockets, pids.
    run_dir: Path = Path("/run/enclaved")
    # What programs print, a file each, of bounded size.
    log_dir: Path = Path("/run/enclaved/log")
    data_root: Path = Path("/var/lib/docker")
    # containerd and dockerd together, so that a tenant who floods his log costs the others nothing.
    engine_cpu_percent: int = 100
    # The server's own files.
    state_bytes: int = 512 << 20
    # Images while they are fetched.
    fetched_bytes: int = 512 << 20
    # dockerd's own records and containers' logs.
    records_bytes: int = 64 << 20
    # Images unpacked, and one while it is loaded.
    layers_bytes: int = 2 << 30
    incoming_bytes: int = 512 << 20
    # Kernel, dockerd, the server.
    reserve_bytes: int = 1 << 30
    # How far clocks may be apart.
    clock_apart_s: int = 5

    def __post_init__(self) -> None:
        sizes = [name for name in vars(self) if name.endswith(("_bytes", "_percent", "_s"))]
        if wrong := [name for name in sizes if getattr(self, name) < 1]:
            raise ValueError(f"{wrong[0]} is at least 1")

    @property
    def status(self) -> Address:
        """Where the server tells how far it is."""
        return parse_address(f"unix:{self.run_dir}/server.sock")


@dataclass(frozen=True)
class HttpConfig:
    """Lightning addresses need a public URL. 0: no HTTP."""

    host: str = "127.0.0.1"
    port: int = 0
    public_url: str | None = None
    # How many zap invoices one address may ask for; behind a proxy all clients have the proxy's.
    callbacks_per_minute: int = 60


@dataclass(frozen=True)
class Config:
    """Everything. `wallet_uri` cannot be printed."""

    server: ServerConfig
    relays: RelaysConfig
    wallet: WalletConfig
    engine: EngineConfig
    registry: RegistryConfig
    http: HttpConfig
    containers: ContainersConfig
    network: NetworkConfig
    parent: ParentConfig
    attestation: AttestationConfig
    escrow: EscrowConfig
    inbox: InboxPolicy
    policy: Policy
    # None: this is no enclave, and whoever started the server sees to the rest.
    boot: BootConfig | None
    # None where the wallet is a container of our own.
    wallet_uri: WalletUri | None = field(repr=False)


@dataclass(frozen=True)
class MachineConfig:
    """As much of the same file as ``enclaved boot`` needs: nothing secret."""

    server: ServerConfig
    engine: EngineConfig
    parent: ParentConfig
    attestation: AttestationConfig
    policy: Policy
    boot: BootConfig


def load(path: Path, environment: Mapping[str, str] | None = None) -> Config:
    """Read and check. Raises `ConfigError`."""
    parts = _parts(path)
    environment = os.environ if environment is None else environment
    return Config(**parts, wallet_uri=_wallet_uri(parts["wallet"], environment))


def load_machine(path: Path) -> MachineConfig:
    """Read and check, but for the wallet. Raises `ConfigError`."""
    parts = _parts(path)
    if parts["boot"] is None:
        raise ConfigError(f"{path} has no section [boot]: it is not that of an enclave")
    return MachineConfig(**{f.name: parts[f.name] for f in fields(MachineConfig)})


def _parts(path: Path) -> dict[str, Any]:
    """Every section but secrets."""
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    sections = {f.name: f for f in fields(Config) if f.name != "wallet_uri"}
    unknown = table.keys() - sections.keys()
    if unknown:
        raise ConfigError(
            f"{path}: unknown section [{min(unknown)}]; known: {', '.join(sections)}"
        )
    types_of = get_type_hints(Config)
    optional = {"boot": None} if "boot" not in table else {}
    return optional | {
        name: _section(_plain(types_of[name]), table.get(name, {}), name)
        for name in sections.keys() - optional.keys()
    }


def _plain(kind: Any) -> Any:
    """The type itself of one that may also be None."""
    return next((k for k in get_args(kind) if k is not type(None)), kind)


def _wallet_uri(wallet: WalletConfig, environment: Mapping[str, str]) -> WalletUri | None:
    text = environment.get("ENCLAVED_WALLET_URI", "")
    if wallet.builtin is not None:
        if text or wallet.uri_file is not None:
            raise ConfigError(
                "[wallet] has a builtin and a URI: which of the two holds the money?"
            )
        return None
    if not text and wallet.uri_file is not None:
        try:
            text = wallet.uri_file.read_text().strip()
        except OSError as error:
            raise ConfigError(f"[wallet] uri_file: {error.strerror}: {wallet.uri_file}") from error
    if not text:
        raise ConfigError(
            "no wallet: set [wallet] uri_file, or the environment's ENCLAVED_WALLET_URI, or [wallet] builtin"
        )
    try:
        return parse_uri(text)
    except BadKey as error:
        raise ConfigError(f"[wallet] {error}") from None


def _section(cls: type[T], table: object, where: str) -> T:
    if not isinstance(table, dict):
        raise ConfigError(f"[{where}] must be a table")
    declared = get_type_hints(cls)
    values = {}
    for name, value in table.items():
        if name not in declared:
            raise ConfigError(f"[{where}] unknown name {name!r}; known: {', '.join(declared)}")
        values[name] = _value(declared[name], value, f"{where}.{name}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"[{where}] {error}") from error


def _value(kind: Any, value: object, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (types.UnionType, Union):
        return _value(_plain(kind), value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        return _section(kind, value, where)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if origin is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if origin is not None and isinstance(value, dict) and origin is not tuple:
        return {str(k): str(v) for k, v in value.items()}
    # bool is an int in Python, not here.
    if origin is None and type(value) is kind:
        return value
    raise ConfigError(
        f"{where} must be {getattr(kind, '__name__', kind)}, not a {type(value).__name__}"
    )
