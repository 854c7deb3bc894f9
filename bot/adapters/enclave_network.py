"""What of an enclave the internet may reach, and which containers there are: told to netstack."""

from collections.abc import Iterable
from pathlib import Path

import structlog
import trio

from handlers.records import PublishedPort
from netstack import control
from netstack.vsock import Address, parse_address

log = structlog.get_logger()
# Said again although nothing changed: netstack, or the parent, may have been started anew.
AGAIN_S = 30.0


class EnclaveNetwork:
    """``own_ports``: what the server itself serves to the internet, TCP."""

    def __init__(self, socket: Path, own_ports: Iterable[int]) -> None:
        self._address: Address = parse_address(f"unix:{socket}")
        self._own = sorted(own_ports)
        self._told: tuple[object, object] | None = None
        self._told_at = -float("inf")

    @property
    def open_tcp(self) -> list[int]:
        """What was told last; the server's own alone while nothing was."""
        opened = self._told[0] if self._told is not None else None
        return list(opened["tcp"]) if isinstance(opened, dict) else self._own

    async def set(self, ports: Iterable[PublishedPort], containers: Iterable[str]) -> bool:
        """Open these ports and no others; know these addresses. Whether something was to be said.

        Raises `control.Refused`, OSError, `trio.TooSlowError`: it was not done, and is to be tried again.
        """
        opened, addresses = _by_protocol(ports, self._own), dict.fromkeys(sorted(containers))
        wanted = (opened, addresses)
        if wanted == self._told and trio.current_time() < self._told_at + AGAIN_S:
            return False
        self._told = None
        await control.call(self._address, "set_containers", containers=addresses)
        await control.call(self._address, "set_ports", **opened)
        self._told, self._told_at = wanted, trio.current_time()
        log.info("network.told", containers=len(addresses), **opened)
        return True


def _by_protocol(ports: Iterable[PublishedPort], own: Iterable[int]) -> dict[str, object]:
    found: dict[str, set[int]] = {"tcp": set(own), "udp": set()}
    for port in ports:
        found.setdefault(port.container_port.partition("/")[2] or "tcp", set()).add(port.host_port)
    return {protocol: sorted(found[protocol]) for protocol in ("tcp", "udp")}
