"""Outgoing HTTP that a stranger's input may steer: only public addresses, unless the operator said so.

The check is made where the connection is made, on the address that is connected to: a name that
resolves to something else a moment later (DNS rebinding) is checked again.
"""

import ipaddress
from collections.abc import Iterable
from typing import Any

import httpcore
import trio


class ForbiddenAddress(httpcore.ConnectError):
    """The host is not on the public internet."""


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
        address = (
            host if f"{host}:{port}" in self._allowed else await self._public_address(host, port)
        )
        return await self._trio.connect_tcp(address, port, timeout, local_address, socket_options)

    async def _public_address(self, host: str, port: int) -> str:
        try:
            found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(f"cannot resolve {host}") from error
        addresses = [str(info[4][0]) for info in found]
        for address in addresses:
            if not ipaddress.ip_address(address.partition("%")[0]).is_global:
                raise ForbiddenAddress(f"{host} is not a public address")
        return addresses[0]

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        raise ForbiddenAddress("no unix sockets here")

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)
