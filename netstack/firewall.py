"""The firewall's text: `nft` at the parent, `iptables-legacy-restore` in the enclave. Pure.

The stock Nitro kernel has no nf_tables, and Docker in the enclave writes iptables too: it puts its own
rules before ours in the filter table. So ours stand in mangle, which is asked first, and whose DROP is
final. All of it is in tables and chains of our own, so that it can go without a trace.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from netstack.layout import (
    CONTAINER_PORTS,
    ENCLAVE_PORTS,
    ENCLAVE_V4,
    ENCLAVE_V6,
    INJECTED_MARK,
    LINK_V4,
    LINK_V6,
    QUEUE_NUMBER,
    Inside,
)
from netstack.policy import FORBIDDEN, FORBIDDEN_V6

TABLE = "netstack"
PREFIX = "NETSTACK"
# Built-in chain -> ours, per table.
JUMPS = {
    "mangle": (("FORWARD", f"{PREFIX}-FORWARD"), ("INPUT", f"{PREFIX}-INPUT")),
    "nat": (("POSTROUTING", f"{PREFIX}-POSTROUTING"),),
}


@dataclass(frozen=True)
class Firewall:
    """``tool``: nft, iptables, ip6tables. The mark in the kernel tells which text stands there."""

    tool: str
    text: str

    @property
    def mark(self) -> str:
        """Short enough for the name of a chain."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def nft_tun_text(device: str, uplink: str, *, ipv6: bool) -> str:
    """Anti-spoofing, DNAT of opened ports with the client's address kept, NAT outwards, default deny."""
    return _nft(
        _set("forbidden4", "ipv4_addr", FORBIDDEN),
        _set("forbidden6", "ipv6_addr", FORBIDDEN_V6),
        _ports("tcp_ports"),
        _ports("udp_ports"),
        _chain(
            "raw",
            "filter hook prerouting priority raw",
            f'iifname "{device}" meta nfproto ipv4 ip saddr != {ENCLAVE_V4} drop',
            f'iifname "{device}" meta nfproto ipv6 '
            + (f"ip6 saddr != {ENCLAVE_V6} drop" if ipv6 else "drop"),
            # The link's addresses are nobody else's business.
            f'iifname != "{device}" ip daddr {LINK_V4} drop',
            f'iifname != "{device}" ip6 daddr {LINK_V6} drop',
        ),
        _chain(
            "opened",
            "nat hook prerouting priority dstnat",
            *(
                f'iifname "{uplink}" fib daddr type local meta nfproto {family} '
                f"{protocol} dport @{protocol}_ports dnat {inet} to {address}"
                for family, inet, address in _families(ipv6=ipv6)
                for protocol in ("tcp", "udp")
            ),
        ),
        _chain(
            "outwards",
            "nat hook postrouting priority srcnat",
            f'iifname "{device}" oifname "{uplink}" meta l4proto {{ tcp, udp }} '
            "masquerade to :1024-61439",
            f'iifname "{device}" oifname "{uplink}" masquerade',
        ),
        _chain(
            "from_enclave",
            None,
            "ct state established,related accept",
            "ct state invalid drop",
            "ip daddr @forbidden4 reject with icmp type admin-prohibited",
            "ip6 daddr @forbidden6 reject with icmpv6 type admin-prohibited",
            f'oifname != "{uplink}" drop',
            "tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu",
            "accept",
        ),
        _chain(
            "to_enclave",
            None,
            "ct state established,related accept",
            f'iifname "{uplink}" ct status dnat tcp flags & (syn|rst) == syn '
            "tcp option maxseg size set rt mtu",
            f'iifname "{uplink}" ct status dnat accept',
            "drop",
        ),
        _chain(
            "forward",
            "filter hook forward priority filter",
            f'iifname "{device}" jump from_enclave',
            f'oifname "{device}" jump to_enclave',
        ),
        _chain(
            "input",
            "filter hook input priority filter",
            f'iifname "{device}" ct state established,related accept',
            f'iifname "{device}" icmp type echo-request accept',
            f'iifname "{device}" icmpv6 type {{ echo-request, nd-neighbor-solicit, '
            "nd-neighbor-advert } accept",
            # The parent's own ports, by whatever address of its.
            f'iifname "{device}" drop',
        ),
    )


def nft_nfqueue_text(uplink: str, address: str) -> str:
    """What the raw socket sends for the enclave is policed; its connections are not the parent's."""
    ours = f'iifname "{uplink}" ip daddr {address}'
    injected = f"meta mark {INJECTED_MARK:#x}"
    return _nft(
        _set("forbidden4", "ipv4_addr", FORBIDDEN),
        _set("enclave_ports", "inet_service", [_nft_range(*each) for each in ENCLAVE_PORTS]),
        _chain(
            "raw",
            "filter hook prerouting priority raw",
            f"{ours} tcp dport @enclave_ports notrack",
            f"{ours} udp dport @enclave_ports notrack",
        ),
        _chain("raw_injected", "filter hook output priority raw", f"{injected} notrack"),
        _chain(
            "injected",
            "filter hook output priority filter",
            f"meta mark != {INJECTED_MARK:#x} accept",
            f"ip saddr != {address} drop",
            "ip daddr @forbidden4 drop",
            f'oifname != "{uplink}" drop',
            "meta l4proto { tcp, udp, icmp } accept",
            "drop",
        ),
    )


def iptables_nfqueue_text(uplink: str, address: str) -> str:
    """The enclave's ports are queued, and never answered here.

    By iptables: not every kernel with NFQUEUE lets nftables use it. Without ``--queue-bypass``: when
    nobody reads the queue, packets are lost until their sender tries again, and this machine does not
    reset the enclave's connections.
    """
    chain, ours = f"{PREFIX}-INPUT", f"-i {uplink} -d {address}"
    queue = f"-j NFQUEUE --queue-num {QUEUE_NUMBER}"
    rules = [
        f"{chain} {ours} -p {protocol} -m {protocol} --dport {first}:{last} {queue}"
        for protocol in ("tcp", "udp")
        for first, last in ENCLAVE_PORTS
    ]
    # An answer or an error to what this machine did not send itself is the enclave's.
    rules.append(f"{chain} {ours} -p icmp -m conntrack --ctstate INVALID {queue}")
    return _restore("mangle", (chain,), rules)


def _nft_range(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}-{last}"


def _families(*, ipv6: bool) -> tuple[tuple[str, str, str], ...]:
    v4 = ("ipv4", "ip", ENCLAVE_V4)
    return (v4, ("ipv6", "ip6", ENCLAVE_V6)) if ipv6 else (v4,)


def _set(name: str, kind: str, elements: Iterable[str]) -> str:
    listed = ", ".join(elements)
    return (
        f"\tset {name} {{\n\t\ttype {kind}\n\t\tflags interval\n\t\tauto-merge\n"
        f"\t\telements = {{ {listed} }}\n\t}}\n"
    )


def _ports(name: str) -> str:
    """Empty: opened and closed at run time."""
    return f"\tset {name} {{\n\t\ttype inet_service\n\t}}\n"


def _chain(name: str, hook: str | None, *rules: str) -> str:
    head = f"\t\ttype {hook}; policy accept;\n" if hook else ""
    body = "".join(f"\t\t{rule}\n" for rule in rules)
    return f"\tchain {name} {{\n{head}{body}\t}}\n"


def _nft(*parts: str) -> str:
    return f"table inet {TABLE} {{\n" + "".join(parts) + "}\n"


def marked_nft(firewall: Firewall) -> str:
    """As loaded: in one transaction, in the place of what was there."""
    head, _, rest = firewall.text.partition("\n")
    return f'table inet {TABLE}\ndelete table inet {TABLE}\n{head}\n\tcomment "{firewall.mark}"\n{rest}'


def iptables_text(device: str, own: str, inside: Inside) -> str:
    """The enclave's, for the family of ``own``. Containers have IPv4 only."""
    v4 = ip_address(own).version == 4
    containers = inside.containers if v4 else ()
    return _mangle(device, inside, containers, v4=v4) + (
        _nat(device, own, containers) if v4 else ""
    )


def _mangle(device: str, inside: Inside, containers: tuple[str, ...], *, v4: bool) -> str:
    forward, egress, count, into = (
        f"{PREFIX}-{n}" for n in ("FORWARD", "EGRESS", "COUNT", "INPUT")
    )
    known = "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"
    rules = [
        f"{forward} -j {count}",
        # A packet without a connection is not translated: it would leave with its inner address.
        f"{forward} -m conntrack --ctstate INVALID -j DROP",
        f"{forward} {known}",
        *(
            f"{forward} -i {device} -d {n} -m conntrack --ctstate DNAT -j RETURN"
            for n in containers
        ),
        f"{forward} -i {device} -j DROP",
        *(
            rule
            for n in containers
            for rule in _from_containers(forward, egress, device, n, inside)
        ),
        # Neighbours, addresses that are no container's, ways that are none.
        f"{forward} -j DROP",
        *(f"{egress} -d {n} -j DROP" for n in (FORBIDDEN if v4 else ())),
        f"{into} -i lo -j RETURN",
        f"{into} {known}",
        f"{into} -p icmp -m icmp --icmp-type 8 -j RETURN"
        if v4
        else f"{into} -p ipv6-icmp -j RETURN",
        *(
            f"{into} -s {n} -p {p} -m {p} --dport {port} -j RETURN"
            for n in containers
            for p, port in (("udp", 53), ("tcp", 53), *(("tcp", s) for s in inside.services))
        ),
        *(f"{into} -i {device} -p tcp -m tcp --dport {p} -j RETURN" for p in inside.public),
        # The enclave's own ports: control plane, database, anything.
        f"{into} -j DROP",
    ]
    return _restore("mangle", (forward, egress, count, into), rules)


def _from_containers(
    forward: str, egress: str, device: str, network: str, inside: Inside
) -> list[str]:
    outwards = f"{forward} -s {network} -o {device}"
    limit = (
        f"{outwards} -m conntrack --ctstate NEW -m connlimit "
        f"--connlimit-above {inside.connections} --connlimit-mask 32 --connlimit-saddr -j DROP"
    )
    admitted = [f"{outwards} -j {egress}", f"{outwards} -j RETURN"]
    return [limit, *admitted] if inside.connections else admitted


def _nat(device: str, own: str, containers: tuple[str, ...]) -> str:
    """SNAT, not MASQUERADE: a masquerade forgets its connections when the device goes down."""
    chain = f"{PREFIX}-POSTROUTING"
    source = "{}:{}-{}".format(own, *CONTAINER_PORTS)
    rules = [
        rule
        for n in containers
        for rule in (
            *(
                f"{chain} -s {n} -o {device} -p {p} -j SNAT --to-source {source}"
                for p in ("tcp", "udp")
            ),
            f"{chain} -s {n} -o {device} -j SNAT --to-source {own}",
        )
    ]
    return _restore("nat", (chain,), rules)


def _restore(table: str, chains: Iterable[str], rules: Iterable[str]) -> str:
    declared = "".join(f":{chain} - [0:0]\n" for chain in chains)
    return f"*{table}\n{declared}" + "".join(f"-A {rule}\n" for rule in rules) + "COMMIT\n"


def marked_iptables(firewall: Firewall) -> str:
    """As loaded: an empty chain whose name is the mark stands in each table."""
    mark = f":{PREFIX}-{firewall.mark} - [0:0]\n"
    return "".join(
        line + (mark if line.startswith("*") else "")
        for line in firewall.text.splitlines(keepends=True)
    )


@dataclass(frozen=True)
class Allow:
    """Where a container may go: a network, and ports of a protocol (``any``: all of it)."""

    network: str
    protocol: str = "any"
    first_port: int = 0
    last_port: int = 65_535

    def rule(self) -> str:
        """As iptables says it. Raises ValueError."""
        place = f"-d {ip_network(self.network)}"
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
        return f"NS-{ip_address(address).packed.hex()}-{digest}"


def container_changes(present: Iterable[str], wanted: Mapping[str, Egress]) -> str:
    """What makes the chains of containers as ``wanted`` (by address), for iptables-restore --noflush.

    ``present``: names of chains that are there. Counters of containers that stay are not touched. Empty
    when nothing changes. Raises ValueError.
    """
    chains = {egress.chain(address): (address, egress) for address, egress in wanted.items()}
    there = {name for name in present if name.startswith("NS-")}
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


def chains_in(saved: str) -> tuple[str, ...]:
    """Names of the user's chains in the output of iptables-save."""
    return tuple(line[1:].split()[0] for line in saved.splitlines() if line.startswith(":"))


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
