"""`netstack.machine.apply.Kernel` on the Linux that we run on: pyroute2, /proc/sys, nft, iptables-legacy."""

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from netstack.machine.apply import CannotApply
from netstack.machine.firewall import TABLE, Firewall
from netstack.machine.iptables import is_whole, loading, removing, tables_of
from netstack.machine.layout import Uplink
from netstack.machine.netconfig import MAIN, QUEUE_PACKETS, Address, Route, Rule, Tun
from netstack.machine.netconfig import TABLE as ROUTES
from netstack.machine.nft import marked_nft

_SYSCTL = Path("/proc/sys")
_UNICAST, _PROHIBIT = 1, 8
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_PROGRAM_S = 20
_NO_PREFERRED_DAD = 0x02  # IFA_F_NODAD: a point-to-point link has no duplicates


def run(command: list[str], text: str | None = None) -> str:
    """Standard output of a program. Raises `CannotApply` with what it said."""
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_PROGRAM_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotApply(f"{command[0]}: {error}") from error
    if done.returncode:
        raise CannotApply(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
    return done.stdout


class LinuxKernel:
    """The network namespace of this process. Blocking: call it in a worker thread."""

    # --- sysctls

    def sysctl(self, key: str) -> str | None:
        """Its value, as the kernel writes it."""
        try:
            return (_SYSCTL / key).read_text().strip()
        except OSError:
            return None

    def set_sysctl(self, key: str, value: str) -> None:
        """Raises `CannotApply`."""
        with _said(f"sysctl {key}={value}"):
            (_SYSCTL / key).write_text(value)

    # --- firewall

    def has_firewall(self, firewall: Firewall) -> bool:
        """It stands, whole."""
        if firewall.tool == "nft":
            return self._nft_mark() == firewall.mark
        return all(
            is_whole(firewall, table, _saved(firewall.tool, table))
            for table in _tables(firewall.tool)
        )

    def load_firewall(self, firewall: Firewall) -> None:
        """In the place of what was there, in one transaction per table: nothing slips through."""
        if firewall.tool == "nft":
            run(["nft", "-f", "-"], marked_nft(firewall))
            return
        wanted = tables_of(firewall)
        for table in _tables(firewall.tool):
            saved = _saved(firewall.tool, table)
            text = loading(firewall, table, saved) if table in wanted else removing(table, saved)
            if text is not None:
                _restore(firewall.tool, text)

    def remove_firewall(self, tool: str) -> bool:
        """All that is ours. Whether there was any."""
        if tool == "nft":
            there = self._nft_is_there()
            if there:
                run(["nft", "delete", "table", "inet", TABLE])
            return there
        texts = [removing(table, _saved(tool, table)) for table in _tables(tool)]
        for text in texts:
            if text is not None:
                _restore(tool, text)
        return any(texts)

    def _nft_is_there(self) -> bool:
        return f"table inet {TABLE}\n" in run(["nft", "list", "tables"])

    def _nft_mark(self) -> str | None:
        # `list tables` carries no comments; `list table` of one that is missing is an error.
        if not self._nft_is_there():
            return None
        comment = re.search(
            r'comment "([0-9a-f]{16})"', run(["nft", "list", "table", "inet", TABLE])
        )
        return comment[1] if comment else None

    # --- devices and addresses

    def tun(self, name: str) -> Tun | None:
        """As it is; None when it is not there, or is down."""
        with IPRoute() as ip:
            link = next(iter(ip.link("dump", ifname=name)), None)
        if link is None or link.get("state") != "up":
            return None
        data = ("linkinfo", "data")
        many, offload = (link.get((*data, f"tun_{word}")) for word in ("multi_queue", "vnet_hdr"))
        return Tun(name, link.get("mtu"), bool(many), bool(offload))

    def add_tun(self, tun: Tun) -> None:
        """Raises `CannotApply`."""
        with _said(f"device {tun.name}"), IPRoute() as ip:
            if not ip.link_lookup(ifname=tun.name):
                ip.link(
                    "add",
                    ifname=tun.name,
                    kind="tun",
                    tun_type=1,
                    tun_pi=0,
                    tun_vnet_hdr=int(tun.offload),
                    tun_multi_queue=int(tun.many_queues),
                )
            index = ip.link_lookup(ifname=tun.name)[0]
            ip.link("set", index=index, mtu=tun.mtu, txqlen=QUEUE_PACKETS, state="up")

    def remove_tun(self, name: str) -> None:
        """Raises `CannotApply`."""
        with _said(f"device {name}"), IPRoute() as ip:
            for index in ip.link_lookup(ifname=name):
                ip.link("del", index=index)

    def addresses(self, link: str) -> set[Address]:
        """Both families."""
        with _said(f"addresses of {link}"), IPRoute() as ip:
            index = ip.link_lookup(ifname=link)
            return (
                {_read_address(link, a) for a in ip.addr("dump", index=index[0])}
                if index
                else set()
            )

    def add_address(self, address: Address) -> None:
        """Raises `CannotApply`."""
        self._address("add", address)

    def remove_address(self, address: Address) -> None:
        """Raises `CannotApply`."""
        self._address("del", address)

    def _address(self, verb: str, address: Address) -> None:
        with _said(f"address {address.local}"), IPRoute() as ip:
            index = _index(ip, address.link)
            if address.peer is not None:
                ip.addr(verb, index=index, local=address.local, address=address.peer, prefixlen=32)
            elif ":" in address.local:
                more = {"flags": _NO_PREFERRED_DAD} if verb == "add" else {}
                ip.addr(verb, index=index, address=address.local, prefixlen=address.prefix, **more)
            else:
                ip.addr(verb, index=index, address=address.local, prefixlen=address.prefix)

    # --- routes and rules

    def routes(self, table: int) -> set[Route]:
        """Both families."""
        with _said(f"routes of table {table}"), IPRoute() as ip:
            return {
                _read_route(ip, family, route, table)
                for family in _FAMILIES.values()
                for route in ip.route("dump", family=family, table=table)
            }

    def add_route(self, route: Route) -> None:
        """Raises `CannotApply`."""
        with _said(f"route {route.destination}"), IPRoute() as ip:
            ip.route("add", **_route_words(ip, route))

    def remove_route(self, route: Route) -> None:
        """Raises `CannotApply`."""
        with _said(f"route {route.destination}"), IPRoute() as ip:
            ip.route("del", **_route_words(ip, route))

    def rules(self) -> set[Rule]:
        """Ours: by their priorities."""
        with _said("rules"), IPRoute() as ip:
            return {
                Rule(
                    version,
                    rule.get("priority"),
                    rule.get("table"),
                    only_specific=rule.get("suppress_prefixlen") == 0,
                )
                for version, family in _FAMILIES.items()
                for rule in ip.rule("dump", family=family)
                if rule.get("priority") in (ROUTES, ROUTES + 1)
            }

    def add_rule(self, rule: Rule) -> None:
        """Raises `CannotApply`."""
        with _said(f"rule {rule.priority}"), IPRoute() as ip:
            ip.rule("add", **_rule_words(rule))

    def remove_rule(self, rule: Rule) -> None:
        """Raises `CannotApply`."""
        with _said(f"rule {rule.priority}"), IPRoute() as ip:
            ip.rule("del", **_rule_words(rule))


def find_uplink(interface: str | None) -> Uplink:
    """The interface of the default route (or the one named), its first address and its MTU.

    Raises `CannotApply`.
    """
    with _said("uplink"), IPRoute() as ip:
        index = _index(ip, interface) if interface else _default_route(ip)
        link = ip.link("get", index=index)[0]
        own = [a for a in ip.addr("dump", index=index) if a.get("scope") == 0]
        v4 = [a.get("local") for a in own if a.get("family") == socket.AF_INET]
        v6 = any(a.get("family") == socket.AF_INET6 for a in own)
        if not v4:
            raise CannotApply(f"{link.get('ifname')} has no IPv4 address")
        return Uplink(link.get("ifname"), v4[0], link.get("mtu"), ipv6=v6)


def _default_route(ip: IPRoute) -> int:
    for route in ip.route("dump", family=socket.AF_INET, table=MAIN):
        if route.get("dst_len") == 0 and route.get("oif"):
            return int(route.get("oif"))
    raise CannotApply("there is no default route: name the uplink's interface")


def _index(ip: IPRoute, name: str) -> int:
    found = ip.link_lookup(ifname=name)
    if not found:
        raise CannotApply(f"there is no interface {name}")
    return int(found[0])


def _read_address(link: str, found: object) -> Address:
    local, other = found.get("local"), found.get("address")  # type: ignore[attr-defined]
    prefix = found.get("prefixlen")  # type: ignore[attr-defined]
    if local is None or local == other:
        return Address(link, other, prefix)
    return Address(link, local, prefix, other)


def _read_route(ip: IPRoute, family: int, found: object, table: int) -> Route:
    get = found.get  # type: ignore[attr-defined]
    anywhere = "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104 - a destination
    destination = f"{get('dst') or anywhere}/{get('dst_len')}"
    if get("type") == _PROHIBIT:
        return Route(destination, None, None, table)
    link = ip.link("get", index=get("oif"))[0].get("ifname")
    return Route(destination, link, get("prefsrc"), table)


def _route_words(ip: IPRoute, route: Route) -> dict[str, object]:
    family = socket.AF_INET6 if ":" in route.destination else socket.AF_INET
    words: dict[str, object] = {"dst": route.destination, "table": route.table, "family": family}
    if route.link is None:
        return {**words, "type": "prohibit"}
    source = {"prefsrc": route.source} if route.source else {}
    return {**words, "oif": _index(ip, route.link), **source}


def _rule_words(rule: Rule) -> dict[str, object]:
    words: dict[str, object] = {
        "family": _FAMILIES[rule.family],
        "priority": rule.priority,
        "table": rule.table,
    }
    return {**words, "suppress_prefixlen": 0} if rule.only_specific else words


def _tables(tool: str) -> tuple[str, ...]:
    """Containers have no IPv6, so there is nothing to translate."""
    return ("mangle", "nat") if tool == "iptables" else ("mangle",)


def _saved(tool: str, table: str) -> str:
    return run([f"{tool}-legacy-save", "-c", "-t", table])


def _restore(tool: str, text: str) -> None:
    run([f"{tool}-legacy-restore", "--noflush", "--counters", "--wait", "5"], text)


@contextmanager
def _said(step: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise CannotApply(f"{step}: {error.args[1]}") from error
    except CannotApply:
        raise
    except OSError as error:
        raise CannotApply(f"{step}: {error.strerror}") from error


def set_ports(tcp: set[int], udp: set[int]) -> None:
    """The parent's open ports, in one transaction; connections that are there stay."""
    lines = []
    for name, ports in (("tcp_ports", tcp), ("udp_ports", udp)):
        lines.append(f"flush set inet {TABLE} {name}")
        if ports:
            listed = ", ".join(str(port) for port in sorted(ports))
            lines.append(f"add element inet {TABLE} {name} {{ {listed} }}")
    run(["nft", "-f", "-"], "\n".join(lines) + "\n")


def open_ports() -> tuple[set[int], set[int]]:
    """TCP and UDP. Raises `CannotApply`."""
    sets = []
    for name in ("tcp_ports", "udp_ports"):
        listed = json.loads(run(["nft", "-j", "list", "set", "inet", TABLE, name]))
        found = next(each["set"] for each in listed["nftables"] if "set" in each)
        sets.append({int(port) for port in found.get("elem", [])})
    return sets[0], sets[1]
