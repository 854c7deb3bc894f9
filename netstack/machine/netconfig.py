"""A machine's network as a value: what `netstack.machine.apply` makes true, and takes away again.

Pure: from what the operator chose and the parent told to devices, addresses, routes, rules and sysctls. The
firewalls' texts are made in `netstack.machine.nft` and `netstack.machine.iptables`.

MTU: that of the parent's uplink, at most 1500. With offloads one read moves 64 KiB whatever the MTU, so
a larger one gains nothing here, and 1500 is what the internet carries without "packet too big".
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from netstack.machine.firewall import Firewall
from netstack.machine.iptables import iptables_nfqueue_text, iptables_text
from netstack.machine.layout import (
    ENCLAVE_V4,
    ENCLAVE_V6,
    HOST_PORTS,
    PARENT_PORTS,
    PARENT_V4,
    PARENT_V6,
    RESOLVER,
    Inside,
    Plane,
    Uplink,
)
from netstack.machine.nft import nft_nfqueue_text, nft_tun_text
from netstack.packets.policy import FORBIDDEN, FORBIDDEN_V6

# As an Ethernet device: with 128, a burst of datagrams is lost while a pump waits for its turn.
QUEUE_PACKETS = 1_000
MOST_MTU, LEAST_MTU = 1_500, 1_280
# The kernel's main table has what Docker and devices need; ours has all that leads outwards.
TABLE = 4_544
MAIN = 254


@dataclass(frozen=True)
class Tun:
    """A persistent TUN device. ``offload``: with a virtio_net_hdr before each packet."""

    name: str
    mtu: int
    many_queues: bool
    offload: bool


@dataclass(frozen=True)
class Address:
    """An address of a link; ``peer``: who is at the other end of a point-to-point link."""

    link: str
    local: str
    prefix: int
    peer: str | None = None


@dataclass(frozen=True)
class Route:
    """``link`` None: whoever tries is told at once that it is prohibited."""

    # Netlink, we, and Python before and after 3.13 write one network in several ways (::ffff:0:0/96, ::ffff:0.0.0.0/96): what is
    # compared is the network.
    destination: str = field(compare=False)
    link: str | None
    source: str | None = None
    table: int = TABLE
    network: IPv4Network | IPv6Network = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", ip_network(self.destination))


@dataclass(frozen=True)
class Rule:
    """``only_specific``: the table's default route does not count."""

    family: int
    priority: int
    table: int
    only_specific: bool = False


@dataclass(frozen=True)
class Sysctl:
    """A key as in /proc/sys, with slashes."""

    key: str
    value: str


@dataclass(frozen=True)
class Network:
    """All of it, in the order in which it is applied: no packet moves before the firewall stands."""

    sysctls: tuple[Sysctl, ...]
    firewalls: tuple[Firewall, ...]
    tuns: tuple[Tun, ...]
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()


def tunnel_mtu(uplink_mtu: int) -> int:
    """The device's MTU. Never below what IPv6 needs, whatever the parent says."""
    return max(LEAST_MTU, min(uplink_mtu, MOST_MTU))


def enclave_addresses(plane: Plane, uplink: Uplink) -> tuple[str, ...]:
    """What the enclave is known by on its device."""
    if plane.kind == "nfqueue":
        return (uplink.address,)
    return (ENCLAVE_V4, ENCLAVE_V6) if uplink.ipv6 else (ENCLAVE_V4,)


def parent(plane: Plane, uplink: Uplink) -> Network:
    """The parent's network: routes and NATs (tun), or queues and injects (nfqueue)."""
    ports = Sysctl("net/ipv4/ip_local_port_range", "{}\t{}".format(*PARENT_PORTS))
    if plane.kind == "nfqueue":
        where = (uplink.interface, uplink.address)
        firewalls = (
            Firewall("nft", nft_nfqueue_text(*where)),
            Firewall("iptables", iptables_nfqueue_text(*where)),
        )
        return Network((ports,), firewalls, (), ())
    sysctls = [ports, Sysctl("net/ipv4/ip_forward", "1")]
    addresses = [Address(plane.device, PARENT_V4, 32, ENCLAVE_V4)]
    if uplink.ipv6:
        sysctls.append(Sysctl("net/ipv6/conf/all/forwarding", "1"))
        # Forwarding turns router advertisements off, by which the uplink may have its route.
        sysctls.append(Sysctl(f"net/ipv6/conf/{uplink.interface}/accept_ra", "2"))
        addresses.append(Address(plane.device, PARENT_V6, 126))
    text = nft_tun_text(plane.device, uplink.interface, ipv6=uplink.ipv6)
    return Network(
        tuple(sysctls), (Firewall("nft", text),), (_tun(plane, uplink),), tuple(addresses)
    )


def enclave(plane: Plane, uplink: Uplink, inside: Inside) -> Network:
    """The enclave's: every way out leads to the device, but none to forbidden networks."""
    own = enclave_addresses(plane, uplink)
    peer = PARENT_V4 if plane.kind == "tun" else None
    addresses = [Address(plane.device, own[0], 32, peer), Address("lo", RESOLVER, 32)]
    ipv6 = len(own) > 1
    if ipv6:
        addresses.append(Address(plane.device, ENCLAVE_V6, 126))
    # Both whatever the parent says: a kernel with IPv6 uses it on bridges, too.
    firewalls = (
        Firewall("iptables", iptables_text(plane.device, own[0], inside)),
        Firewall("ip6tables", iptables_text(plane.device, ENCLAVE_V6, inside)),
    )
    routes = [Route("0.0.0.0/0", plane.device, own[0]), *_prohibited(FORBIDDEN)]
    if ipv6:
        routes += [Route("::/0", plane.device, own[1]), *_prohibited(FORBIDDEN_V6)]
    return Network(
        _enclave_sysctls(plane, ipv6=ipv6),
        firewalls,
        (_tun(plane, uplink),),
        tuple(addresses),
        tuple(routes),
        _rules(ipv6=ipv6),
    )


def _tun(plane: Plane, uplink: Uplink) -> Tun:
    return Tun(plane.device, tunnel_mtu(uplink.mtu), plane.queues > 1, offload=plane.kind == "tun")


def _prohibited(networks: tuple[str, ...]) -> list[Route]:
    """The enclave's own programs are bound by this too, dockerd's pulls among them."""
    return [Route(each, None) for each in networks]


def _rules(*, ipv6: bool) -> tuple[Rule, ...]:
    """Bridges and the link itself first, by the main table; then ours, whose end is final."""
    families = (4, 6) if ipv6 else (4,)
    return tuple(
        rule
        for family in families
        for rule in (
            Rule(family, TABLE, MAIN, only_specific=True),
            Rule(family, TABLE + 1, TABLE),
        )
    )


def _enclave_sysctls(plane: Plane, *, ipv6: bool) -> tuple[Sysctl, ...]:
    values = {
        "net/ipv4/ip_forward": "1",
        "net/ipv4/ip_local_port_range": "{}\t{}".format(*HOST_PORTS),
        # A container cannot send with its neighbour's address: answers would leave by another bridge.
        "net/ipv4/conf/default/rp_filter": "1",
        "net/ipv4/conf/all/rp_filter": "1",
        "net/ipv4/conf/all/accept_redirects": "0",
        "net/ipv4/conf/default/accept_redirects": "0",
        "net/ipv4/conf/all/send_redirects": "0",
        "net/ipv4/conf/default/send_redirects": "0",
        "net/ipv4/conf/all/accept_source_route": "0",
        # A path that swallows "too big" must not stall a connection for ever (RFC 4821).
        "net/ipv4/tcp_mtu_probing": "1",
    }
    if ipv6:
        values["net/ipv6/conf/all/forwarding"] = "1"
    return tuple(Sysctl(key, value) for key, value in values.items())


def check(network: str) -> str:
    """A network of containers as given by the operator. Raises ValueError with what to write."""
    parsed = ip_network(network)
    if parsed.version != 4 or not parsed.is_private:
        raise ValueError(f"{network}: containers live in a private IPv4 network")
    if ip_address(RESOLVER) in parsed or ip_address(ENCLAVE_V4) in parsed:
        raise ValueError(f"{network}: holds {ENCLAVE_V4} or {RESOLVER}, which are the enclave's")
    return str(parsed)
