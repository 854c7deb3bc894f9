"""The machine's network as a value: whole configurations, applied twice, cut off anywhere, taken away."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2 import netns

from netstack.machine import containers, egress, firewall, linux, netconfig
from netstack.machine.apply import CannotApply, apply, remove
from netstack.machine.egress import Allow, Egress, Traffic, container_changes
from netstack.machine.iptables import loading, removing, tables_of
from netstack.machine.layout import Inside, Plane, Uplink
from netstack.machine.linux import LinuxKernel
from netstack.machine.nft import marked_nft
from tests.net.kernel import Died, FakeKernel
from tests.net.lab import Lab, run

GOLDEN = Path(__file__).with_name("golden")
UPLINK = Uplink("eth0", "54.0.0.2", 1_500, ipv6=True)
V4_ONLY = Uplink("eth0", "54.0.0.2", 9_001, ipv6=False)
INSIDE = Inside(("10.200.0.0/16",), services=(7_070,), public=(443,), connections=4_096)
NETWORKS = {
    "parent-tun": netconfig.parent(Plane(), UPLINK),
    "parent-tun-v4": netconfig.parent(Plane(), V4_ONLY),
    "parent-nfqueue": netconfig.parent(Plane("nfqueue"), V4_ONLY),
    "enclave-tun": netconfig.enclave(Plane(queues=2), UPLINK, INSIDE),
    "enclave-tun-v4": netconfig.enclave(Plane(), V4_ONLY, INSIDE),
    "enclave-nfqueue": netconfig.enclave(Plane("nfqueue"), V4_ONLY, INSIDE),
}


def _loaded(iptables):
    return "".join(loading(iptables, table, "") for table in tables_of(iptables))


def written(network):
    """As text that a person can read line by line."""
    parts = [repr(step) for step in (*network.sysctls, *network.tuns, *network.addresses)]
    parts += [repr(step) for step in (*network.routes, *network.rules)]
    for each in network.firewalls:
        loaded = marked_nft(each) if each.tool == "nft" else _loaded(each)
        parts.append(f"--- {each.tool}\n{loaded.replace(each.mark, 'MARK')}")
    return "\n".join(parts) + "\n"


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_configurations(name):
    """``ENCLAVED_GOLDEN=1`` writes them anew: read the difference."""
    file = GOLDEN / f"{name}.txt"
    text = written(NETWORKS[name])
    if os.environ.get("ENCLAVED_GOLDEN"):
        file.write_text(text)

    assert text == file.read_text()


@contextmanager
def fake_machine(_):
    kernel = FakeKernel()
    yield kernel, kernel.picture


@contextmanager
def real_machine(folder):
    """The namespace of a lab's parent: it has an uplink."""
    lab = Lab(folder, ipv6=True, containers=False)
    try:
        lab.up()
        netns.pushns(lab.space("par"))
        try:
            yield LinuxKernel(), _picture
        finally:
            netns.popns()
    finally:
        lab.down()


def _picture():
    """Everything that we could have left behind."""
    saved = [
        line
        for tool in ("iptables", "ip6tables")
        for line in run(f"{tool}-legacy-save").splitlines()
        if not line.startswith("#")
    ]
    sysctls = {s.key for network in NETWORKS.values() for s in network.sysctls}
    return (
        json.loads(run("ip", "-j", "link"))[-1]["ifname"],
        [a["addr_info"] for a in json.loads(run("ip", "-j", "addr"))],
        run("ip", "route", "show", "table", "all"),
        run("ip", "rule"),
        run("ip", "-6", "rule"),
        run("nft", "list", "ruleset"),
        # Tables that were never asked for appear, empty, once they were.
        [line for line in saved if line.startswith("-") or "NETSTACK" in line],
        {key: LinuxKernel().sysctl(key) for key in sysctls},
    )


MACHINES = {"fake": fake_machine, "real": real_machine}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", NETWORKS)
def test_applying_twice_changes_nothing_and_removing_leaves_no_trace(machine, name, tmp_path):
    network, before = NETWORKS[name], tmp_path / "before.json"
    with MACHINES[machine](tmp_path / "lab") as (kernel, picture):
        clean = picture()
        assert apply(network, kernel, before)
        applied = picture()
        assert apply(network, kernel, before) == []
        assert picture() == applied
        assert remove(network, kernel, before)
        assert picture() == clean
        assert remove(network, kernel, before) == []
    assert not before.exists()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_crash_between_any_two_steps_is_repaired_by_applying_again(
    name, tmp_path, record_property
):
    network = NETWORKS[name]
    whole = FakeKernel()
    apply(network, whole, tmp_path / "whole.json")
    for lived in range(whole.changes):
        kernel, before = FakeKernel(die_after=lived), tmp_path / f"{lived}.json"
        clean = kernel.picture()
        with pytest.raises(Died):
            apply(network, kernel, before)
        kernel.die_after = None
        apply(network, kernel, before)
        assert kernel.picture() == whole.picture()
        remove(network, kernel, before)
        assert kernel.picture() == clean
    record_property("figure", f"network {name}: crash points tried {whole.changes}")


@pytest.mark.parametrize("name", NETWORKS)
def test_no_packet_moves_before_the_firewall_stands(name, tmp_path):
    network = NETWORKS[name]
    steps = apply(network, FakeKernel(), tmp_path / "before.json")
    firewalls = [n for n, step in enumerate(steps) if step.startswith("firewall")]
    moving = [n for n, step in enumerate(steps) if step.startswith(("device", "route", "rule"))]

    assert not moving or max(firewalls) < min(moving)


def test_a_change_of_one_part_touches_no_other(tmp_path):
    kernel, before = FakeKernel(), tmp_path / "before.json"
    apply(NETWORKS["enclave-tun-v4"], kernel, before)
    more = netconfig.enclave(Plane(), V4_ONLY, Inside(("10.200.0.0/16",), public=(80,)))

    assert apply(more, kernel, before) == ["firewall iptables", "firewall ip6tables"]


def test_a_kernel_without_a_sysctl_is_an_error_with_its_name(tmp_path):
    kernel = FakeKernel()
    del kernel.sysctls["net/ipv4/ip_forward"]
    with pytest.raises(CannotApply, match="no net/ipv4/ip_forward"):
        apply(NETWORKS["parent-tun"], kernel, tmp_path / "before.json")


def test_the_fake_refuses_impossible_steps(tmp_path):
    network = NETWORKS["enclave-tun-v4"]
    kernel = FakeKernel()
    for impossible in (
        lambda: kernel.add_route(network.routes[0]),
        lambda: kernel.add_address(network.addresses[0]),
        lambda: kernel.set_sysctl("net/ipv4/nonsense", "1"),
        lambda: kernel.load_firewall(
            firewall.Firewall("iptables", "*nat\n-A NOWHERE -j DROP\nCOMMIT\n")
        ),
    ):
        with pytest.raises(CannotApply):
            impossible()


@pytest.mark.parametrize("uplink_mtu", [0, 68, 576, 1_280, 1_400, 1_500, 9_001, 65_535])
def test_the_mtu_is_within_what_every_path_and_ipv6_need(uplink_mtu):
    mtu = netconfig.tunnel_mtu(uplink_mtu)

    assert 1_280 <= mtu <= 1_500
    assert mtu == uplink_mtu or not 1_280 <= uplink_mtu <= 1_500


@pytest.mark.parametrize("given", ["8.8.8.0/24", "10.0.0.0/8", "10.118.0.0/16", "fd00::/64", "x"])
def test_a_network_of_containers_that_cannot_be(given):
    with pytest.raises(ValueError, match=r"."):
        netconfig.check(given)


WEB = Egress(
    (Allow("1.1.1.1/32", "tcp", 443, 443), Allow("9.0.0.0/8"), Allow("8.0.0.0/8", "icmp"))
)


def test_rules_of_containers_come_go_and_keep_their_counters(tmp_path):
    """On the real kernel: only what changed is touched."""
    with real_machine(tmp_path / "lab") as (kernel, picture):
        clean = picture()
        network, before = NETWORKS["enclave-tun-v4"], tmp_path / "before.json"
        apply(network, kernel, before)
        assert containers.set_rules({"10.200.0.2": Egress(), "10.200.0.18": WEB})
        assert not containers.set_rules({"10.200.0.2": Egress(), "10.200.0.18": WEB})
        saved = run("iptables-legacy-save", "-t", "mangle")
        assert "-d 1.1.1.1/32 -p tcp -m tcp --dport 443 -j RETURN" in saved
        assert apply(network, kernel, before) == []
        assert containers.set_rules({"10.200.0.18": Egress()})
        saved = run("iptables-legacy-save", "-t", "mangle")
        assert "10.200.0.2/32" not in saved
        assert "1.1.1.1" not in saved
        assert containers.traffic() == {"10.200.0.18": Traffic()}
        remove(network, kernel, before)
        assert picture() == clean


BREAKS = {
    "mangle emptied": lambda: run("iptables-legacy-restore", "--noflush", text=removing(
        "mangle", run("iptables-legacy-save", "-c", "-t", "mangle"))),
    "nat emptied": lambda: run("iptables-legacy-restore", "--noflush", text=removing(
        "nat", run("iptables-legacy-save", "-c", "-t", "nat"))),
    "a jump missing": lambda: run(*MANGLE, "-D", "FORWARD", "-j", "NETSTACK-FORWARD"),
    "a jump twice": lambda: run(*MANGLE, "-A", "INPUT", "-j", "NETSTACK-INPUT"),
    "a chain of before": lambda: run(*MANGLE, "-N", "NETSTACK-OLD"),
}  # fmt: skip
MANGLE = ("iptables-legacy", "-t", "mangle")


@pytest.mark.parametrize("broken", BREAKS)
def test_half_a_firewall_is_none(broken, tmp_path):
    """It is loaded again, and taken away whole."""
    network, before = NETWORKS["enclave-tun-v4"], tmp_path / "before.json"
    with real_machine(tmp_path / "lab") as (kernel, picture):
        clean = picture()
        apply(network, kernel, before)
        applied = picture()
        BREAKS[broken]()
        assert apply(network, kernel, before) == ["firewall iptables"]
        assert picture() == applied
        BREAKS[broken]()
        assert "firewall iptables" in remove(network, kernel, before)
        assert picture() == clean


def test_a_firewall_that_changes_keeps_what_containers_were_given(tmp_path):
    network, before = NETWORKS["enclave-tun-v4"], tmp_path / "before.json"
    more = netconfig.enclave(Plane(), V4_ONLY, Inside(("10.200.0.0/16",), public=(80,)))
    with real_machine(tmp_path / "lab") as (kernel, _):
        apply(network, kernel, before)
        containers.set_rules({"10.200.0.2": WEB})
        run("iptables-legacy-restore", "--noflush", "--counters", text=(
            "*mangle\n-D NETSTACK-COUNT -s 10.200.0.2/32\n[3:70] -A NETSTACK-COUNT -s 10.200.0.2/32\nCOMMIT\n"
        ))  # fmt: skip
        counted = containers.traffic()
        assert counted == {"10.200.0.2": Traffic(70, 0)}
        assert "firewall iptables" in apply(more, kernel, before)
        assert containers.traffic() == counted
        assert not containers.set_rules({"10.200.0.2": WEB})
        saved = run(*MANGLE, "-S")
        assert "-A NETSTACK-EGRESS -s 10.200.0.2/32 -j NS-" in saved
        assert "-d 1.1.1.1/32 -p tcp -m tcp --dport 443 -j RETURN" in saved
        assert "--dport 443 -j RETURN" not in run(*MANGLE, "-S", "NETSTACK-INPUT")


def test_counters_are_read_by_address_and_direction():
    saved = (
        "*mangle\n:NETSTACK-COUNT - [0:0]\n[5:700] -A NETSTACK-COUNT -s 10.200.0.2/32\n"
        "[3:40] -A NETSTACK-COUNT -d 10.200.0.2/32\n[1:2] -A NETSTACK-COUNT -s 10.200.0.18/32\n"
        "[9:9] -A NETSTACK-FORWARD -j DROP\nCOMMIT\n"
    )
    assert egress.traffic_in(saved) == {
        "10.200.0.2": Traffic(700, 40),
        "10.200.0.18": Traffic(2, 0),
    }


@pytest.mark.parametrize(
    "allow",
    [Allow("nonsense"), Allow("1.1.1.1", "sctp"), Allow("1.1.1.1", "tcp", 5, 4), Allow("1.1.1.1/8"),
     Allow("1.1.1.1", "udp", -1, 4), Allow("1.1.1.1", "tcp", 1, 65_536), Allow("1.1.1.1 -j ACCEPT"),
     Allow("::%x -j RETURN\n-F NETSTACK-INPUT\n/0"), Allow("::/0")],
)  # fmt: skip
def test_a_rule_that_is_none_never_reaches_the_firewall(allow):
    with pytest.raises(ValueError, match=r"."):
        container_changes((), {"10.200.0.2": Egress((allow,))})


def test_the_uplink_is_found_by_the_default_route(tmp_path):
    with real_machine(tmp_path / "lab"):
        assert linux.find_uplink(None) == linux.find_uplink("eth0") == UPLINK
        with pytest.raises(CannotApply, match="no interface eth7"):
            linux.find_uplink("eth7")


def test_a_network_is_one_network_however_it_is_written():
    """Python 3.13, which the image has, writes it otherwise than 3.11: what was applied once would not be known again."""
    route = netconfig.Route
    assert route("::ffff:0:0/96", None) == route("::ffff:0.0.0.0/96", None)
    assert route("64:ff9b::/96", None) == route("64:ff9b:0:0::/96", None)
    assert route("64:ff9b::/96", None) != route("::ffff:0:0/96", None)
