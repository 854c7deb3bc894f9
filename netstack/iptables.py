"""Firewalls as text for `iptables-legacy-restore`: the enclave's, and what queues for a parent. Pure.

The stock Nitro kernel has no nf_tables, and Docker in the enclave writes iptables too: it puts its own
rules before ours in the filter table. So ours stand in mangle, which is asked first, and whose DROP is
final.
"""

from collections.abc import Iterable
from ipaddress import ip_address

from netstack.firewall import PREFIX, Firewall
from netstack.layout import CONTAINER_PORTS, ENCLAVE_PORTS, QUEUE_NUMBER, Inside
from netstack.policy import FORBIDDEN


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


def chains_in(saved: str) -> tuple[str, ...]:
    """Names of the user's chains in the output of iptables-save."""
    return tuple(line[1:].split()[0] for line in saved.splitlines() if line.startswith(":"))
