"""Both data planes, from containers to the internet and back, in namespaces on the real kernel."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2 import netns

from netstack.config import load_enclave
from netstack.machine import netconfig
from netstack.machine.firewall import Firewall
from netstack.machine.iptables import iptables_text
from netstack.machine.layout import ENCLAVE_V4, Inside, Uplink
from netstack.machine.linux import LinuxKernel
from tests.net.lab import (
    ELSEWHERE,
    FORBIDDEN,
    INTERNET,
    INTERNET_V6,
    PARENT,
    PARENT_V6,
    WHO,
    Held,
    running,
    until,
)

C1, C2 = "10.200.0.2", "10.200.0.18"
SERVICE, SECRET = 7_070, 9_999


def grouped(*kinds):
    """One lab for all tests of a kind: they run on one worker."""
    return [pytest.param(kind, marks=pytest.mark.xdist_group(f"net-{kind}")) for kind in kinds]


@pytest.fixture(scope="module", params=grouped("tun", "nfqueue"))
def lab(request, tmp_path_factory):
    options = {"kind": request.param, "inside": {"services": [SERVICE], "public": [443]}}
    with running(tmp_path_factory.mktemp("lab"), **options) as lab:
        for name, port in (
            ("inet", 5_000), ("par", 5_300), ("par", 22), ("enc", SERVICE), ("enc", SECRET),
            ("enc", 443), ("c1", 8_080), ("c2", 8_080),
        ):  # fmt: skip
            lab.serve(name, port)
        # What Docker does for a published port.
        for protocol in ("tcp", "udp"):
            lab.do("enc", "iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-p", protocol, "-m",
                   "addrtype", "--dst-type", "LOCAL", "--dport", "20000", "-j", "DNAT", "--to-destination",
                   f"{C1}:8080")  # fmt: skip
        assert lab.call("set_ports", tcp=[443, 20_000], udp=[20_000]) == {"tcp": [443, 20_000], "udp": [20_000]}  # fmt: skip
        lab.call("set_containers", containers={C1: None, C2: None})
        yield lab


@pytest.mark.parametrize("name", ["enc", "c1", "c2"])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_outwards(lab, name, kind):
    address, port, size = lab.ask(name, kind, INTERNET, 5_000, 0, 900).split()

    assert (address, size) == (PARENT, "900")
    assert 1_024 <= int(port) <= 61_439


def test_a_megabyte_arrives_whole(lab):
    assert lab.ask("c1", "tcp", ELSEWHERE, 5_000, 0, 1 << 20).split()[2] == str(1 << 20)


@pytest.mark.parametrize("size", [1_473, 8_000, 60_000])
def test_fragments_of_a_large_datagram_arrive_whole(lab, size):
    assert lab.ask("c1", "udp", INTERNET, 5_000, 0, size).split()[2] == str(size)


@pytest.mark.parametrize("name", ["enc", "c1"])
def test_ping(lab, name):
    said = lab.do(name, "busybox", "ping", "-c", "3", "-W", "3", ELSEWHERE, check=False)

    assert "3 packets received" in said


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_inbound_reaches_the_container_with_the_clients_address(lab, kind):
    assert lab.ask("inet", kind, PARENT, 20_000, 7_777).split() == [INTERNET, "7777", "10"]


def test_inbound_reaches_what_the_enclave_itself_publishes(lab):
    assert lab.ask("inet", "tcp", PARENT, 443, 7_778).split() == [INTERNET, "7778", "10"]


@pytest.mark.parametrize("port", [SECRET, SERVICE, 8_080, 53, 1_081])
def test_what_is_not_published_is_not_reached(lab, port):
    assert lab.blocked("inet", "tcp", PARENT, port)


@pytest.mark.parametrize("address", FORBIDDEN)
@pytest.mark.parametrize("name", ["enc", "c1"])
def test_private_networks_and_metadata_are_out_of_reach(lab, name, address):
    assert lab.blocked(name, "tcp", address, 5_000)


@pytest.mark.parametrize("name", ["enc", "c1"])
@pytest.mark.parametrize("address", ["10.118.0.1", PARENT])
@pytest.mark.parametrize("port", [22, 5_300])
def test_the_parents_own_ports_are_out_of_reach(lab, name, address, port):
    assert lab.blocked(name, "tcp", address, port)


@pytest.mark.parametrize("address", ["10.200.0.1", "10.200.0.17", "10.118.0.2", "10.118.0.53"])
def test_a_container_reaches_the_enclaves_services_and_no_other_port_of_it(lab, address):
    if lab.kind == "nfqueue" and address == "10.118.0.2":
        address = PARENT
    assert lab.ask("c1", "tcp", address, SERVICE).split()[0] == C1
    assert lab.blocked("c1", "tcp", address, SECRET)
    assert lab.blocked("c1", "tcp", address, 443)


def test_neighbours_do_not_reach_each_other(lab):
    assert lab.blocked("c2", "tcp", C1, 8_080)
    assert lab.blocked("c2", "udp", C1, 8_080)


@pytest.mark.parametrize("address", [C2, "1.2.3.4", "10.118.0.2", "10.200.0.200"])
def test_a_container_that_spoofs_its_source_sends_nothing(lab, address):
    """Seen from the internet: nothing arrives, translated or not."""
    lab.do("c1", "ip", "addr", "add", f"{address}/32", "dev", "lo", check=False)
    lab.do("c1", "ip", "route", "replace", "default", "via", "10.200.0.1", "src", address)
    before = received(lab)
    try:
        assert lab.blocked("c1", "udp", INTERNET, 5_000)
        assert received(lab) == before
    finally:
        lab.do("c1", "ip", "addr", "del", f"{address}/32", "dev", "lo")
        lab.do("c1", "ip", "route", "replace", "default", "via", "10.200.0.1", "src", C1)
    assert lab.ask("c1", "udp", INTERNET, 5_000).split()[0] == PARENT


def received(lab):
    """UDP datagrams that the internet's host took in."""
    lines = [
        x.split()
        for x in lab.do("inet", "cat", "/proc/net/snmp").splitlines()
        if x.startswith("Udp:")
    ]
    return int(lines[1][lines[0].index("InDatagrams")])


def test_source_ports_of_host_and_containers_never_collide(lab):
    """The same source port, at the same time, to the same place: each gets its own answer."""
    answers = {}

    def ask(name):
        answers[name] = lab.ask(name, "tcp", INTERNET, 5_000, 34_567).split()

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("enc", "c1", "c2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    ports = [int(answer[1]) for answer in answers.values()]
    assert len(set(ports)) == 3
    assert all(answer[0] == PARENT for answer in answers.values())
    inside = {name: int(answers[name][1]) for name in ("c1", "c2")}
    if lab.kind == "nfqueue":  # nobody translates again
        assert int(answers["enc"][1]) == 34_567
        assert all(40_960 <= port <= 61_439 for port in inside.values())


def test_bytes_are_counted_by_container(lab):
    before = lab.call("get_traffic")
    lab.ask("c1", "tcp", INTERNET, 5_000, 0, 100_000)
    after = lab.call("get_traffic")

    assert 100_000 < after[C1]["sent_bytes"] - before[C1]["sent_bytes"] < 120_000
    assert 0 < after[C1]["received_bytes"] - before[C1]["received_bytes"] < 20_000
    assert after[C2] == before[C2]


def test_a_container_with_a_list_goes_nowhere_else(lab):
    rule = {
        "network": f"{INTERNET}/32",
        "protocol": "tcp",
        "first_port": 5_000,
        "last_port": 5_000,
    }
    assert lab.call("set_containers", containers={C1: [rule], C2: None}) == {"changed": True}
    try:
        assert lab.ask("c1", "tcp", INTERNET, 5_000).split()[0] == PARENT
        assert lab.blocked("c1", "tcp", ELSEWHERE, 5_000)
        assert lab.blocked("c1", "udp", INTERNET, 5_000)
        assert lab.ask("c2", "udp", INTERNET, 5_000).split()[0] == PARENT
    finally:
        lab.call("set_containers", containers={C1: None, C2: None})
    assert lab.ask("c1", "udp", INTERNET, 5_000).split()[0] == PARENT


def test_bad_rules_and_ports_are_refused_in_words(lab):
    refused = lab.call("set_containers", containers={C1: [{"network": "x"}]})["refused"]
    assert "'x'" in refused
    assert "61440" in lab.call("set_ports", tcp=[61_440])["refused"]
    assert "22" in lab.call("set_ports", tcp=[22])["refused"]
    assert "no method" in lab.call("shell")["refused"]


def test_a_ports_scan_from_the_internet_finds_what_is_open_only(lab):
    code = (
        "import socket, json\nfound = []\n"
        "for port in [22, 53, 80, 443, 1080, 1081, 1082, 2375, 5000, 7070, 8080, 9999, 20000, 20001, 61439, 61440]:\n"
        "    s = socket.socket(); s.settimeout(0.3)\n"
        "    try: s.connect(('54.0.0.2', port)); found.append(port)\n"
        "    except OSError: pass\n"
        "    s.close()\nprint(json.dumps(found))"
    )  # fmt: skip
    found = json.loads(lab.do("inet", sys.executable, "-c", code))

    assert found == [22, 443, 20_000]  # 22 is the parent's own, and the parent's business


def test_ports_open_and_close_without_dropping_others(tmp_path):
    with running(tmp_path, inside={"public": [443, 8_000]}) as lab:
        lab.serve("enc", 443)
        lab.serve("enc", 8_000)
        assert lab.blocked("inet", "tcp", PARENT, 443)
        lab.call("set_ports", tcp=[443])
        held = Held(lab, "inet", PARENT, 443)
        lab.call("set_ports", tcp=[443, 8_000])
        assert lab.ask("inet", "tcp", PARENT, 8_000).split()[0] == INTERNET
        assert held.still_there()
        lab.call("set_ports", tcp=[443])
        assert lab.blocked("inet", "tcp", PARENT, 8_000)
        assert held.still_there()
        held.end()


def test_ipv6_where_the_parent_has_it(tmp_path):
    with running(tmp_path, ipv6=True, containers=False, inside={"public": [443]}) as lab:
        lab.serve("inet", 5_000)
        lab.serve("enc", 443)
        lab.serve("par", 5_300)
        lab.call("set_ports", tcp=[443])
        assert lab.ask("enc", "tcp", INTERNET_V6, 5_000).split()[0] == PARENT_V6
        assert lab.ask("enc", "udp", INTERNET_V6, 5_000).split()[0] == PARENT_V6
        assert lab.ask("inet", "tcp", PARENT_V6, 443, 7_777).split()[:2] == [INTERNET_V6, "7777"]
        assert lab.blocked("enc", "tcp", PARENT_V6, 5_300)
        assert lab.blocked("enc", "tcp", "fd00:118::1", 5_300)
        assert lab.blocked("enc", "tcp", "fd00:ec2::254", 80)
        assert "1 packets received" in lab.do("enc", "busybox", "ping", "-6", "-c1", "-W3", INTERNET_V6, check=False)  # fmt: skip


def test_several_queues_carry_it_too(tmp_path):
    with running(tmp_path, queues=2, containers=False) as lab:
        lab.serve("inet", 5_000)
        until(lambda: lab.call("get_status")["connected"] == 2, 5)
        for port in range(6):
            assert lab.ask("enc", "tcp", INTERNET, 5_000, 0, 200_000 + port).split()[2] == str(200_000 + port)  # fmt: skip


def test_a_firewall_that_changes_is_never_open(lab):
    """While a container tries a port of the enclave's again and again."""
    kernel = LinuxKernel()
    texts = [
        Firewall("iptables", iptables_text("tun0", ENCLAVE_V4, Inside(("10.200.0.0/16",), (SERVICE,), (port,))))
        for port in (443, 8_000)
    ]  # fmt: skip
    code = (
        "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nend = time.time() + 3\nn = 0\n"
        f"while time.time() < end:\n    s.sendto(b'x', ('10.200.0.1', {SECRET})); n += 1\nprint(n)"
    )
    before = udp_received(lab)
    knocking = lab.spawn("c1", sys.executable, "-c", code, stdout=subprocess.PIPE, text=True)
    netns.pushns(lab.space("enc"))
    try:
        whole = next(f for f in loaded(lab) if kernel.has_firewall(f))
        while knocking.poll() is None:
            for each in texts:
                kernel.load_firewall(each)
        kernel.load_firewall(whole)
    finally:
        netns.popns()
    assert int(knocking.stdout.read()) > 1_000
    assert udp_received(lab) == before
    assert lab.ask("c1", "tcp", INTERNET, 5_000).split()[0] == PARENT


def loaded(lab):
    """What netstack itself has loaded in the enclave, by the lab's configuration."""
    config = load_enclave(lab.folder / "enclave.toml")
    uplink = Uplink("", PARENT, 1_500, ipv6=False)
    return [f for f in netconfig.enclave(config.plane, uplink, config.inside).firewalls if f.tool == "iptables"]  # fmt: skip


def udp_received(lab):
    """Datagrams that programs of the enclave got, or could have got."""
    lines = lab.do("enc", "cat", "/proc/net/snmp").splitlines()
    names, values = [line.split()[1:] for line in lines if line.startswith("Udp:")]
    found = dict(zip(names, map(int, values), strict=True))
    return found["InDatagrams"] + found["NoPorts"] + found["RcvbufErrors"]


def test_a_container_does_not_reach_the_enclave_by_ipv6_of_its_bridge(lab):
    found = json.loads(lab.do("enc", "ip", "-j", "-6", "addr", "show", "dev", "br1"))
    local = found[0]["addr_info"][0]["local"]

    assert "1 packets received" in lab.do("c1", "busybox", "ping", "-6", "-c1", "-W3", f"{local}%eth0", check=False)  # fmt: skip
    assert lab.blocked("c1", "tcp", f"{local}%eth0", SECRET)
    assert lab.blocked("c1", "udp", f"{local}%eth0", SECRET)


def pump_of(lab, end, direction):
    pid = lab.ends[end].pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if f'"direction": "{direction}"' in Path(f"/proc/{child}/cmdline").read_text():
            return int(child)
    raise AssertionError(lab.logs())


@contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_datagrams_that_wait_travel_together_and_arrive_each_with_its_checksum(tmp_path):
    """The far end verifies: what leaves the parent has its checksum made in software, as on a wire."""
    count, size = 300, 1_400
    with running(tmp_path) as lab:
        lab.serve("inet", 5_000)
        for space, device in (("par", "eth0"), ("inet", "veth0")):
            lab.do(space, sys.executable, "-I", "-S", str(WHO), "unaided", device)
        before = lab.call("get_status")["outbound"]
        burst = lab.spawn("c1", sys.executable, "-I", "-S", str(WHO), "burst", INTERNET, "5000",
                          str(count), str(size), stdout=subprocess.PIPE, text=True)  # fmt: skip
        assert burst.stdout.readline() == "ready\n"
        with stopped(pump_of(lab, "enclave", "outbound")):
            assert burst.stdout.readline() == "sent\n"
        assert burst.stdout.readline() == f"{count}\n"
        after = lab.call("get_status")["outbound"]
    assert after["packets"] - before["packets"] >= count
    # Alone, each would have headers of 42 bytes; 300 are 7 super-packets of up to 46.
    assert count * size < after["bytes"] - before["bytes"] < count * (size + 10)


def test_too_big_comes_back_and_the_sender_heeds_it(tmp_path):
    """A narrower link beyond the parent: its ICMP "too big" reaches the sender in the enclave."""
    with running(tmp_path, containers=True) as lab:
        lab.serve("inet", 5_000)
        lab.do("par", "ip", "route", "add", ELSEWHERE, "via", INTERNET, "mtu", "1300")
        assert lab.ask("c1", "tcp", ELSEWHERE, 5_000, 0, 300_000).split()[2] == "300000"
        assert lab.ask("enc", "tcp", ELSEWHERE, 5_000, 0, 300_000).split()[2] == "300000"
