"""Where a container may go, and what it sent and received: chains of the enclave's firewall. Pure."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address

from netstack.machine.firewall import CONTAINER_PREFIX, PREFIX


@dataclass(frozen=True)
class Allow:
    """Where a container may go: a network, and ports of a protocol (``any``: all of it)."""

    network: str
    protocol: str = "any"
    first_port: int = 0
    last_port: int = 65_535

    def rule(self) -> str:
        """As iptables says it. Raises ValueError."""
        place = f"-d {IPv4Network(self.network)}"
        if self.protocol == "any":
            return place
        if self.protocol not in ("tcp", "udp", "icmp"):
            raise ValueError(f"protocol {self.protocol!r} is none of tcp, udp, icmp, any")
        if self.protocol == "icmp":
            return f"{place} -p icmp"
        if not 0 <= self.first_port <= self.last_port <= 65_535:
            raise ValueError(f"ports {self.first_port}-{self.last_port}")
        ports = f"--dport {self.first_port}:{self.last_port}"
        return f"{place} -p {self.protocol} -m {self.protocol} {ports}"


@dataclass(frozen=True)
class Egress:
    """``allow`` None: everything but forbidden networks; else these only (and the resolver)."""

    allow: tuple[Allow, ...] | None = None

    def rules(self) -> tuple[str, ...]:
        """Of a chain that a container's outgoing packets pass. Raises ValueError."""
        if self.allow is None:
            return ()
        return (*(f"{each.rule()} -j RETURN" for each in self.allow), "-j DROP")

    def chain(self, address: str) -> str:
        """Its name says whose it is and what is in it, so that the kernel's state can be read."""
        digest = hashlib.sha256("\n".join(self.rules()).encode()).hexdigest()[:8]
        return f"{CONTAINER_PREFIX}{ip_address(address).packed.hex()}-{digest}"


def container_changes(present: Iterable[str], wanted: Mapping[str, Egress]) -> str:
    """What makes the chains of containers as ``wanted`` (by address), for iptables-restore --noflush.

    ``present``: names of chains that are there. Counters of containers that stay are not touched. Empty
    when nothing changes. Raises ValueError.
    """
    chains = {egress.chain(address): (address, egress) for address, egress in wanted.items()}
    there = {name for name in present if name.startswith(CONTAINER_PREFIX)}
    added = {name: chains[name] for name in sorted(chains.keys() - there)}
    gone = sorted(there - chains.keys())
    if not added and not gone:
        return ""
    counted = {_address(name) for name in there}
    egress, count = f"{PREFIX}-EGRESS", f"{PREFIX}-COUNT"
    lines = [f":{name} - [0:0]" for name in added]
    for name, (address, rules) in added.items():
        lines += [f"-A {name} {rule}" for rule in rules.rules()]
        lines.append(f"-A {egress} -s {address}/32 -j {name}")
        if address not in counted:
            lines += [f"-A {count} {way} {address}/32" for way in ("-s", "-d")]
    for name in gone:
        address = _address(name)
        lines += [f"-D {egress} -s {address}/32 -j {name}", f"-F {name}", f"-X {name}"]
        if address not in wanted:
            lines += [f"-D {count} {way} {address}/32" for way in ("-s", "-d")]
    return "*mangle\n" + "\n".join(lines) + "\nCOMMIT\n"


def _address(chain: str) -> str:
    return str(ip_address(bytes.fromhex(chain.split("-")[1])))


@dataclass(frozen=True)
class Traffic:
    """Bytes of a container, as the kernel counted them."""

    sent_bytes: int = 0
    received_bytes: int = 0


def traffic_in(saved: str) -> dict[str, Traffic]:
    """By address, from the output of iptables-save with counters."""
    found: dict[str, Traffic] = {}
    for line in saved.splitlines():
        counters, _, rule = line.partition("] ")
        words = rule.split()
        if words[:2] != ["-A", f"{PREFIX}-COUNT"]:
            continue
        size, way, address = int(counters.split(":")[1]), words[2], words[3].removesuffix("/32")
        old = found.get(address, Traffic())
        sent, received = (size, 0) if way == "-s" else (0, size)
        found[address] = Traffic(old.sent_bytes + sent, old.received_bytes + received)
    return found
