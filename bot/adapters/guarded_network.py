"""Outgoing HTTP that a stranger's input may steer: only public addresses, unless the operator said so.

The check is made where the connection is made, on the address that is connected to: a name that
resolves to something else a moment later (DNS rebinding) is checked again.
"""

import ipaddress
import socket
from collections.abc import Iterable
from functools import cache, partial
from typing import Any

import httpcore
import trio

MAX_LOOKUPS = 64


class ForbiddenAddress(httpcore.ConnectError):
    """The host is not on the public internet."""


# Of IPv6 only global unicast, without what wraps an IPv4 address: 6to4, Teredo, and NAT64 outside of it.
_UNICAST6 = ipaddress.ip_network("2000::/3")
_WRAPPED = (ipaddress.ip_network("2002::/16"), ipaddress.ip_network("2001::/23"))


def is_public(text: str) -> bool:
    """Whether an address is on the public internet, and unicast."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        return (
            address in _UNICAST6
            and address.is_global
            and not any(address in net for net in _WRAPPED)
        )
    return address.is_global and not address.is_multicast


async def resolve_public(host: str, port: int) -> str:
    """An address of the host, if all of them are public. Raises `ForbiddenAddress` or `ConnectError`."""
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = await trio.to_thread.run_sync(ask, limiter=_lookups(), abandon_on_cancel=True)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(f"cannot resolve {host}") from error
    addresses = [str(info[4][0]) for info in found]
    if not addresses or not all(map(is_public, addresses)):
        raise ForbiddenAddress(f"{host} is not a public address")
    return addresses[0]


@cache
def _lookups() -> trio.CapacityLimiter:
    """Name servers that are silent hold these threads for half a minute, and no others."""
    return trio.CapacityLimiter(MAX_LOOKUPS)


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to public addresses, and to ``host:port`` pairs on the operator's list."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(allowed)
        self._trio = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        address = host if f"{host}:{port}" in self._allowed else await resolve_public(host, port)
        return await self._trio.connect_tcp(address, port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        raise ForbiddenAddress("no unix sockets here")

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)
