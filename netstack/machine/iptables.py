"""Firewalls as text for `iptables-legacy-restore`: the enclave's, and what queues for a parent. Pure.

The stock Nitro kernel has no nf_tables, and Docker in the enclave writes iptables too: it puts its own
rules before ours in the filter table. So ours stand in mangle, which is asked first, and whose DROP is
final.
"""

from collections.abc import Iterable
from ipaddress import ip_address

from netstack.machine.firewall import CONTAINER_PREFIX, JUMPS, PREFIX, Firewall
from netstack.machine.layout import CONTAINER_PORTS, ENCLAVE_PORTS, QUEUE_NUMBER, Inside
from netstack.packets.policy import FORBIDDEN


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
        *(_limit(f"{into} -s {n}", inside) for n in containers if inside.connections),
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
    admitted = [f"{outwards} -j {egress}", f"{outwards} -j RETURN"]
    return [_limit(outwards, inside), *admitted] if inside.connections else admitted


def _limit(which: str, inside: Inside) -> str:
    """One container cannot fill the connection table."""
    return (
        f"{which} -m conntrack --ctstate NEW -m connlimit "
        f"--connlimit-above {inside.connections} --connlimit-mask 32 --connlimit-saddr -j DROP"
    )


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


def tables_of(firewall: Firewall) -> dict[str, str]:
    """The text of each table, with its mark: an empty chain of that name. Without head and COMMIT."""
    mark = f":{PREFIX}-{firewall.mark} - [0:0]\n"
    tables = (part.partition("\n") for part in firewall.text.split("COMMIT\n")[:-1])
    return {head.removeprefix("*"): mark + body for head, _, body in tables}


def loading(firewall: Firewall, table: str, saved: str) -> str:
    """What puts a table in the place of what is there, in one transaction.

    ``saved``: the output of iptables-save with counters; for iptables-restore --noflush --counters. What
    containers were given (`netstack.machine.egress`) stays, and so do their counters.
    """
    wanted = tables_of(firewall)[table]
    chains = chains_in(wanted)
    gone = [c for c in chains_in(saved) if c.startswith(f"{PREFIX}-") and c not in chains]
    kept = [line for line in saved.splitlines() if _of_containers(line)]
    jumps = [f"-I {chain} 1 -j {target}" for chain, target in _jumps_of(table, chains)]
    return _transaction(
        table, wanted + "\n".join(kept), *_unjumped(table, saved), *jumps, *_gone(gone)
    )


def removing(table: str, saved: str) -> str | None:
    """What takes all of ours out of a table; None when there is nothing."""
    ours = [c for c in chains_in(saved) if c.startswith((f"{PREFIX}-", CONTAINER_PREFIX))]
    lines = [*_unjumped(table, saved), *_gone(ours)]
    return _transaction(table, *lines) if lines else None


def is_whole(firewall: Firewall, table: str, saved: str) -> bool:
    """The table has what the firewall wants there, and nothing else of ours."""
    chains = chains_in(tables_of(firewall).get(table, ""))
    there = {c for c in chains_in(saved) if c.startswith(f"{PREFIX}-")}
    return there == set(chains) and _jumps_in(table, saved) == _jumps_of(table, chains)


def _transaction(table: str, *lines: str) -> str:
    return "\n".join([f"*{table}", *(line.rstrip("\n") for line in lines), "COMMIT\n"])


def _gone(chains: Iterable[str]) -> list[str]:
    """Emptied first: one may lead to another."""
    return [f"{verb} {chain}" for verb in ("-F", "-X") for chain in chains]


def _unjumped(table: str, saved: str) -> list[str]:
    return [f"-D {chain} -j {target}" for chain, target in _jumps_in(table, saved)]


def _jumps_of(table: str, chains: Iterable[str]) -> list[tuple[str, str]]:
    return [(chain, target) for chain, target in JUMPS[table] if target in chains]


def _jumps_in(table: str, saved: str) -> list[tuple[str, str]]:
    lines = [line.partition("] ")[2] or line for line in saved.splitlines()]
    return [
        (chain, target)
        for chain, target in JUMPS[table]
        for line in lines
        if line == f"-A {chain} -j {target}"
    ]


def _of_containers(line: str) -> bool:
    rule = line.partition("] ")[2]
    return rule.startswith(f"-A {PREFIX}-COUNT ") or (
        rule.startswith(f"-A {PREFIX}-EGRESS ") and f" -j {CONTAINER_PREFIX}" in rule
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
