"""What both ends and both firewalls agree on: addresses, port ranges, and what there is to join."""

from dataclasses import dataclass

# The link between parent and enclave; nothing of it is ever seen outside.
LINK_V4, LINK_V6 = "10.118.0.0/24", "fd00:118::/64"
PARENT_V4, ENCLAVE_V4 = "10.118.0.1", "10.118.0.2"
PARENT_V6, ENCLAVE_V6 = "fd00:118::1", "fd00:118::2"
# Where containers find the resolver: an address of the enclave's own, the same for every bridge.
RESOLVER = "10.118.0.53"
# Source ports: the parent's own, and within the enclave its host's and its containers'.
PARENT_PORTS = (61_440, 65_535)
HOST_PORTS = (32_768, 40_959)
CONTAINER_PORTS = (40_960, 61_439)
# What the enclave may be reached at; in the nfqueue plane also where it sends from.
ENCLAVE_PORTS = ((80, 80), (443, 443), (1_024, 61_439))
# What the firewall knows packets by that the parent's raw socket sends for the enclave: "ENST".
INJECTED_MARK = 0x454E_5354
QUEUE_NUMBER = 0


@dataclass(frozen=True)
class Uplink:
    """What the parent has: its interface to the internet."""

    interface: str
    address: str
    mtu: int
    ipv6: bool


@dataclass(frozen=True)
class Plane:
    """What both ends agree on. ``kind``: tun, nfqueue."""

    kind: str = "tun"
    device: str = "tun0"
    queues: int = 1


@dataclass(frozen=True)
class Inside:
    """What is in the enclave."""

    # Networks of Docker's bridges: containers are on the second, the default one.
    containers: tuple[str, ...] = ("10.200.0.0/16", "10.201.0.0/22")
    # TCP ports of the enclave itself that containers may reach, besides the resolver.
    services: tuple[int, ...] = ()
    # TCP ports of the enclave itself that the internet may reach.
    public: tuple[int, ...] = ()
    # New connections of one container at a time; 0: no limit (needs the kernel's xt_connlimit).
    connections: int = 4_096
