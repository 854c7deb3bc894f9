"""The parent's firewall, as text for `nft`. Pure."""

from collections.abc import Iterable

from netstack.machine.firewall import TABLE, Firewall
from netstack.machine.layout import (
    ENCLAVE_PORTS,
    ENCLAVE_V4,
    ENCLAVE_V6,
    INJECTED_MARK,
    LINK_V4,
    LINK_V6,
)
from netstack.packets.policy import FORBIDDEN, FORBIDDEN_V6


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
            # Never in the name of the parent's own connections.
            "tcp sport != @enclave_ports drop",
            "udp sport != @enclave_ports drop",
            "ip daddr @forbidden4 drop",
            f'oifname != "{uplink}" drop',
            "meta l4proto { tcp, udp, icmp } accept",
            "drop",
        ),
    )


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
