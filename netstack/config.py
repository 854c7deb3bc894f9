"""What the operator chooses, from a TOML file. Every mistake is told with its name."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from netstack.control import Refused, read_uplink
from netstack.dns import Resolver
from netstack.machine import netconfig
from netstack.machine.layout import Inside, Plane, Uplink
from netstack.streams import Stream
from netstack.vsock import Address, parse_address

T = TypeVar("T")
STATE = Path("/run/netstack")


class ConfigError(Exception):
    """The message says what to change."""


@dataclass(frozen=True)
class ParentConfig:
    """The parent listens; the enclave is told by its CID."""

    plane: Plane = Plane()
    # Default: the interface of the default route.
    uplink: str | None = None
    peer_cid: int | None = None
    state: Path = STATE
    packets: Address = parse_address("vsock:any:1081")
    control: Address = parse_address("vsock:any:1082")
    # The nfqueue plane: where the enclave's packets come to, and where ours go.
    raw_listen: Address = parse_address("vsock:any:1080")
    raw_peer: Address = parse_address("vsock:16:1080")
    streams: tuple[Stream, ...] = ()


@dataclass(frozen=True)
class EnclaveConfig:
    """The enclave connects; only in the nfqueue plane the parent connects to it, too."""

    plane: Plane = Plane()
    state: Path = STATE
    packets: Address = parse_address("vsock:3:1081")
    control: Address = parse_address("vsock:3:1082")
    raw_listen: Address = parse_address("vsock:any:1080")
    raw_peer: Address = parse_address("vsock:3:1080")
    # Where the enclave's server asks us for ports, rules and counters.
    local: Address = parse_address("unix:/run/netstack/control.sock")
    # A parent without our control channel: what it would have told.
    uplink: Uplink | None = None
    inside: Inside = Inside()
    resolver: Resolver | None = Resolver()
    streams: tuple[Stream, ...] = ()


def load_parent(path: Path) -> ParentConfig:
    """Raises `ConfigError`."""
    return ParentConfig(
        **_fields(
            _table(path),
            {
                **_SHARED,
                "uplink": _typed(str),
                "peer_cid": _typed(int),
            },
        )
    )


def load_enclave(path: Path) -> EnclaveConfig:
    """Raises `ConfigError`."""
    return EnclaveConfig(
        **_fields(
            _table(path),
            {
                **_SHARED,
                "local": _address,
                "uplink": _uplink,
                "inside": _inside,
                "resolver": _resolver,
            },
        )
    )


def _table(path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _fields(
    table: Mapping[str, object], readers: Mapping[str, Callable[[object], Any]]
) -> dict[str, Any]:
    unknown = table.keys() - readers.keys()
    if unknown:
        raise ConfigError(f"unknown: {min(unknown)}; known: {', '.join(sorted(readers))}")
    return {name: _read(name, readers[name], value) for name, value in table.items()}


def _read(name: str, reader: Callable[[object], T], value: object) -> T:
    try:
        return reader(value)
    except (ValueError, TypeError, Refused) as error:
        raise ConfigError(f"{name}: {error}") from error


def _typed(kind: type[T]) -> Callable[[object], T]:
    def read(value: object) -> T:
        if type(value) is not kind:
            raise ValueError(f"{value!r} is not of type {kind.__name__}")
        return value

    return read


def _address(value: object) -> Address:
    return parse_address(_typed(str)(value))


def _section(value: object, readers: Mapping[str, Callable[[object], Any]]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("a section is wanted")
    return _fields(value, readers)


def _many(reader: Callable[[object], T]) -> Callable[[object], tuple[T, ...]]:
    def read(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise TypeError("a list is wanted")
        return tuple(reader(each) for each in value)

    return read


def _plane(value: object) -> Plane:
    plane = Plane(
        **_section(value, {"kind": _typed(str), "device": _typed(str), "queues": _typed(int)})
    )
    if plane.kind not in ("tun", "nfqueue"):
        raise ValueError(f"kind is tun or nfqueue, not {plane.kind!r}")
    if not 1 <= plane.queues <= 8:
        raise ValueError("queues is 1 to 8")
    return plane


def _stream(value: object) -> Stream:
    found = _section(value, {"source": _address, "target": _address})
    if len(found) != 2:
        raise ValueError("a stream has a source and a target")
    return Stream(**found)


def _uplink(value: object) -> Uplink:
    return read_uplink({"mtu": netconfig.MOST_MTU, "ipv6": False, **_section(value, {
        "address": _typed(str), "mtu": _typed(int)})})  # fmt: skip


def _container_network(value: object) -> str:
    return netconfig.check(_typed(str)(value))


def _inside(value: object) -> Inside:
    ports = _many(_typed(int))
    readers: dict[str, Callable[[object], Any]] = {
        "containers": _many(_container_network),
        "services": ports,
        "public": ports,
        "connections": _typed(int),
    }
    return Inside(**_section(value, readers))


def _resolver(value: object) -> Resolver | None:
    if value is False:
        return None
    readers = {
        "upstreams": _many(_typed(str)),
        "certificates": _typed(str),
        "program": _typed(str),
    }
    return Resolver(**_section(value, readers))


_SHARED: dict[str, Callable[[object], Any]] = {
    "plane": _plane,
    "state": lambda value: Path(_typed(str)(value)),
    "packets": _address,
    "control": _address,
    "raw_listen": _address,
    "raw_peer": _address,
    "streams": _many(_stream),
}
