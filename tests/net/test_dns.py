"""The resolver in the enclave: over TLS only, several upstreams, nothing in plain."""

import os
import sys
from pathlib import Path

import pytest

from netstack.dns import Resolver, docker_settings, unbound_text
from netstack.machine.layout import RESOLVER, Inside
from tests.net.certificates import make_certificates
from tests.net.lab import ELSEWHERE, INTERNET, running, until

DOT = Path(__file__).with_name("dot.py")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dns")
    authority = make_certificates(folder, "dns.example.net")
    resolver = {
        "upstreams": [f"{ELSEWHERE}@853#dns.example.net", f"{INTERNET}@853#dns.example.net"],
        "certificates": str(authority),
    }
    with running(folder / "lab", resolver=resolver) as lab:
        lab.names = folder / "names"
        lab.upstreams = {a: upstream(lab, folder, a) for a in (ELSEWHERE, INTERNET)}
        yield lab


def upstream(lab, folder, address, certificate="dns.example.net"):
    process = lab.spawn(
        "inet", sys.executable, "-I", "-S", str(DOT), f"{folder}/{certificate}.pem",
        f"{folder}/{certificate}.key", address, str(folder / "names"),
    )  # fmt: skip
    until(lambda: f"{address}:853" in lab.do("inet", "ss", "-Htln"), 10)
    return process


def look_up(lab, name, space="c1", timeout=10):
    words = ("busybox", "timeout", str(timeout), "busybox", "nslookup", name, RESOLVER)
    return lab.do(space, *words, check=False, timeout=30)


pytestmark = pytest.mark.xdist_group("net-dns")


def test_containers_and_host_resolve_and_the_parent_sees_no_name(lab, tmp_path):
    """Everything that crosses the parent is captured and searched."""
    capture = tmp_path / "parent.pcap"
    code = (
        "import socket, sys\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))\n"
        "s.bind(('eth0', 0)); print('up', flush=True)\n"
        f"f = open({str(capture)!r}, 'wb', 0)\nwhile True: f.write(s.recv(70000))"
    )
    watcher = lab.spawn("par", sys.executable, "-c", code, stdout=-1, text=True)
    assert watcher.stdout.readline() == "up\n"
    for space, name in (("c1", "secret-of-one.example.org"), ("enc", "secret-of-two.example.org")):
        assert ELSEWHERE in look_up(lab, name, space)
    until(lambda: capture.stat().st_size > 1_000, 5)
    seen = capture.read_bytes()
    asked = lab.names.read_text().split()

    assert {"secret-of-one.example.org", "secret-of-two.example.org"} <= set(asked)
    assert b"secret-of" not in seen


def test_a_name_that_leads_to_a_private_address_leads_nowhere(lab):
    assert "10.0.0.7" not in look_up(lab, "rebind.example.org")


def test_one_upstream_gone_the_other_answers(lab):
    lab.upstreams.pop(ELSEWHERE).kill()

    until(lambda: ELSEWHERE in look_up(lab, f"n{os.urandom(4).hex()}.example.org"), 30, lab.logs)


def test_a_resolver_that_dies_is_started_again(lab):
    (pid,) = (
        int(p.name)
        for p in Path("/proc").iterdir()
        if p.name.isdigit()
        and _command(p).startswith("unbound")
        and str(lab.folder) in _command(p)
    )
    os.kill(pid, 9)

    until(lambda: ELSEWHERE in look_up(lab, f"n{os.urandom(4).hex()}.example.org"), 20, lab.logs)
    assert "resolver.ended" in lab.log("enclave")


def _command(process):
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_an_upstream_with_another_certificate_is_not_believed(tmp_path):
    make_certificates(tmp_path, "other.example.net")
    good = make_certificates(tmp_path / "good", "dns.example.net")
    resolver = {"upstreams": [f"{ELSEWHERE}@853#dns.example.net"], "certificates": str(good)}
    with running(tmp_path / "lab", resolver=resolver) as lab:
        upstream(lab, tmp_path, ELSEWHERE, "other.example.net")
        assert ELSEWHERE not in look_up(lab, "anything.example.org", timeout=4).replace(
            RESOLVER, ""
        )
    assert not (tmp_path / "names").exists()


def test_its_configuration_as_text():
    text = unbound_text(Resolver(), Inside(("10.200.0.0/16",)), "/run/netstack")

    assert "forward-tls-upstream: yes" in text
    assert "forward-first: no" in text  # else it would ask root servers in plain
    assert text.count("forward-addr: ") == 3
    assert all("@853#" in line for line in text.splitlines() if "forward-addr" in line)
    assert "access-control: 0.0.0.0/0 refuse" in text
    assert docker_settings(1_500)["dns"] == [RESOLVER]


@pytest.mark.parametrize("upstream", ["1.1.1.1", "1.1.1.1@853", "a\nb@853#x", "x@853#dns.example.net\n    forward-first: yes"])  # fmt: skip
def test_an_upstream_is_one_word(upstream):
    with pytest.raises(ValueError, match="address@port#name"):
        Resolver((upstream,))
