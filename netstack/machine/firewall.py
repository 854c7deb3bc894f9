"""A firewall as a value: which tool loads it, its text, and the mark by which it is known again. Pure.

The texts are made in `netstack.machine.nft` (the parent's) and `netstack.machine.iptables` (the enclave's). All of it is in
tables and chains of our own, so that it can go without a trace.
"""

import hashlib
from dataclasses import dataclass

TABLE = "netstack"
PREFIX = "NETSTACK"
# Of the chains with one container's rules (`netstack.machine.egress`).
CONTAINER_PREFIX = "NS-"
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
