"""Makes the machine's network be as a `Network` says, step by step, and takes it away again.

Each step first looks whether it is needed, so applying twice changes nothing, and a crash between any two
is repaired by applying again. What the sysctls were before is written down, and restored at the end.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from netstack.machine.firewall import Firewall
from netstack.machine.netconfig import TABLE, Address, Network, Route, Rule, Sysctl, Tun

_IPV6 = "net/ipv6/conf/all/forwarding"


class CannotApply(OSError):
    """The kernel refused a step; the message says which, and why."""


class Kernel(Protocol):
    """A machine's network. Every method raises `CannotApply`."""

    def sysctl(self, key: str) -> str | None:
        """None: this kernel has no such key."""
        ...

    def set_sysctl(self, key: str, value: str) -> None:
        """Write it."""
        ...

    def has_firewall(self, firewall: Firewall) -> bool:
        """It stands, whole: every table with its mark, every jump to it."""
        ...

    def load_firewall(self, firewall: Firewall) -> None:
        """In the place of what was there."""
        ...

    def remove_firewall(self, tool: str) -> bool:
        """All that is ours, were it half only. Whether there was any."""
        ...

    def tun(self, name: str) -> Tun | None:
        """The device, when it is there and up."""
        ...

    def add_tun(self, tun: Tun) -> None:
        """Make it, or make what is there as it should be; bring it up."""
        ...

    def remove_tun(self, name: str) -> None:
        """With its addresses and routes."""
        ...

    def addresses(self, link: str) -> set[Address]:
        """Of a link."""
        ...

    def add_address(self, address: Address) -> None:
        """The link is there."""
        ...

    def remove_address(self, address: Address) -> None:
        """It is there."""
        ...

    def routes(self, table: int) -> set[Route]:
        """Of a table."""
        ...

    def add_route(self, route: Route) -> None:
        """Its link is up."""
        ...

    def remove_route(self, route: Route) -> None:
        """It is there."""
        ...

    def rules(self) -> set[Rule]:
        """Those with our priorities."""
        ...

    def add_rule(self, rule: Rule) -> None:
        """It is not there."""
        ...

    def remove_rule(self, rule: Rule) -> None:
        """It is there."""
        ...


def apply(network: Network, kernel: Kernel, before: Path) -> list[str]:
    """Returns what was changed, in words. ``before``: where the old sysctls are kept.

    Raises `CannotApply`; what was done until then stays, and applying again goes on from there.
    """
    done: list[str] = []
    for sysctl in network.sysctls:
        done += _apply_sysctl(sysctl, kernel, before)
    for firewall in network.firewalls:
        if _concerns(firewall, kernel) and not kernel.has_firewall(firewall):
            kernel.load_firewall(firewall)
            done.append(f"firewall {firewall.tool}")
    for tun in network.tuns:
        if kernel.tun(tun.name) != tun:
            kernel.add_tun(tun)
            done.append(f"device {tun.name}")
    for address in network.addresses:
        if address not in kernel.addresses(address.link):
            kernel.add_address(address)
            done.append(f"address {address.local}")
    return done + _apply_routes(network, kernel) + _apply_rules(network.rules, kernel)


def remove(network: Network, kernel: Kernel, before: Path) -> list[str]:
    """The reverse, in reverse order: the firewall stands until nothing moves any more."""
    done: list[str] = []
    done += _apply_rules((), kernel)
    done += _apply_routes(None, kernel)
    for address in network.addresses:
        if address in kernel.addresses(address.link):
            kernel.remove_address(address)
            done.append(f"address {address.local}")
    for tun in network.tuns:
        if kernel.tun(tun.name) is not None:
            kernel.remove_tun(tun.name)
            done.append(f"device {tun.name}")
    for firewall in network.firewalls:
        if _concerns(firewall, kernel) and kernel.remove_firewall(firewall.tool):
            done.append(f"firewall {firewall.tool}")
    for key, value in _remembered(before).items():
        kernel.set_sysctl(key, value)
        done.append(f"sysctl {key}")
    before.unlink(missing_ok=True)
    return done


def _concerns(firewall: Firewall, kernel: Kernel) -> bool:
    """A kernel without IPv6 has nothing to filter; one with it but without ip6tables is refused."""
    return firewall.tool != "ip6tables" or kernel.sysctl(_IPV6) is not None


def _apply_sysctl(sysctl: Sysctl, kernel: Kernel, before: Path) -> list[str]:
    old = kernel.sysctl(sysctl.key)
    if old is None:
        raise CannotApply(f"this kernel has no {sysctl.key}")
    if old == sysctl.value:
        return []
    remembered = _remembered(before)
    if sysctl.key not in remembered:  # after a crash, what we wrote ourselves is not "before"
        before.parent.mkdir(parents=True, exist_ok=True)
        new = before.with_suffix(".new")
        new.write_text(json.dumps({**remembered, sysctl.key: old}))
        new.replace(before)
    kernel.set_sysctl(sysctl.key, sysctl.value)
    return [f"sysctl {sysctl.key}"]


def _remembered(before: Path) -> dict[str, str]:
    try:
        return {str(k): str(v) for k, v in json.loads(before.read_text()).items()}
    except FileNotFoundError:
        return {}


def _apply_routes(network: Network | None, kernel: Kernel) -> list[str]:
    """Prohibitions first, so that nothing slips through while the way out is already there."""
    wanted = set(network.routes) if network else set()
    present = kernel.routes(TABLE)
    done: list[str] = []
    for route in sorted(wanted - present, key=lambda r: r.link is not None):
        kernel.add_route(route)
        done.append(f"route {route.destination}")
    for route in present - wanted:
        kernel.remove_route(route)
        done.append(f"route {route.destination}")
    return done


def _apply_rules(wanted: Iterable[Rule], kernel: Kernel) -> list[str]:
    present = kernel.rules()
    done: list[str] = []
    for rule in sorted(set(wanted) - present, key=lambda r: -r.priority):
        kernel.add_rule(rule)
        done.append(f"rule {rule.priority}")
    for rule in sorted(present - set(wanted), key=lambda r: r.priority):
        kernel.remove_rule(rule)
        done.append(f"rule {rule.priority}")
    return done
