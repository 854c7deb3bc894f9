"""Crashes under load, liars on the stream, and a machine that changes under us."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from netstack.packets.framing import HELLO_SIZE, PING_FRAME, Hello
from netstack.planes.link import MOST_STRANGERS
from tests.net.lab import ELSEWHERE, INTERNET, PARENT, WHO, Held, run, running, until
from tests.net.packets import ENCLAVE, frame, ipv4, offload

KILLS = 20
RECONNECTS = 10


def memory_kib(lab, end):
    """Resident memory of a service and its pumps."""
    pid = lab.ends[end].pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(
        int(line.split()[1])
        for each in (pid, *children)
        for line in Path(f"/proc/{each}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )


def transfer(lab, size):
    """A transfer that goes on in the background: ask the process when it is done."""
    words = ("ask", "tcp", ELSEWHERE, "5000", "0", str(size), "90000")
    return lab.spawn("c1", sys.executable, "-I", "-S", str(WHO), *words,
                     stdout=subprocess.PIPE, text=True)  # fmt: skip


@pytest.mark.parametrize("kind", ["tun", "nfqueue"])
def test_connections_survive_twenty_kills_of_either_end_under_load(
    tmp_path, kind, record_property
):
    with running(tmp_path, kind=kind) as lab:
        lab.serve("inet", 5_000)
        held = Held(lab, "c1", ELSEWHERE, 5_000)
        load = transfer(lab, 1 << 20)
        sizes = []
        for number in range(KILLS):
            end = ("parent", "enclave")[number % 2]
            lab.kill(end)
            lab.start(end)
            if load.poll() is not None:
                assert load.stdout.read().split()[2] == str(1 << 20)
                load = transfer(lab, 1 << 20)
            if number >= 2:
                sizes.append(sum(memory_kib(lab, each) for each in ("parent", "enclave")))
            if number % 5 == 4:
                assert held.still_there(), lab.logs()
        assert load.wait(90) == 0
        assert load.stdout.read().split()[2] == str(1 << 20)
        held.end()
        assert max(sizes) < 2 * min(sizes)
    record_property(
        "figure", f"{kind}: kill -9 of either end {KILLS} times, both ends' memory {min(sizes)}-{max(sizes)} KiB"
    )  # fmt: skip


def test_no_byte_is_lost_under_ten_reconnects_of_a_transfer(tmp_path, record_property):
    """The pumps are killed, so that both ends reconnect while TCP has much in flight."""
    size = 3 << 30
    with running(tmp_path) as lab:
        lab.serve("inet", 5_000)
        load = transfer(lab, size)
        for number in range(RECONNECTS):
            time.sleep(0.1)
            pid = lab.ends["enclave"].pid
            pump = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
            os.kill(pump, signal.SIGKILL)
            until(lambda n=number: lab.log("enclave").count("link.up") >= n + 2, 10, lab.logs)
        during = load.poll() is None
        assert load.wait(90) == 0
        assert load.stdout.read().split()[2] == str(size)
        status = lab.call("get_status")
    assert status["reconnects"] >= RECONNECTS
    record_property("figure", f"3 GiB arrived whole over {status['reconnects']} reconnects (the last one {'during' if during else 'after'} it)")  # fmt: skip


LIES = {
    "garbage": os.urandom(200_000),
    "giant": b"\xff\xff\xff\x00" + b"x" * 200_000,
    "zero": b"\x00" * 200_000,
    "half": frame(offload() + ipv4())[:20],
    "unknown kind": b"\x00\x00\x00\x07",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n" * 100,
}


def stranger(lab):
    """A connection to where the parent takes packets."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(f"{lab.folder}/packets.sock")
    sock.settimeout(10)
    return sock


def impostor(lab, data=b"", hello=None):
    """Connects to the parent as an enclave would."""
    sock = stranger(lab)
    sock.sendall(Hello(0, 1_500, 0).encode() if hello is None else hello)
    if hello is None:
        assert len(sock.recv(HELLO_SIZE)) == HELLO_SIZE
        try:
            sock.sendall(data)
        except BrokenPipeError:
            pass
    return sock


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with running(tmp_path_factory.mktemp("lab")) as lab:
        lab.serve("inet", 5_000)
        yield lab


@pytest.fixture
def lab(whole):
    """A parent whose enclave was taken over: the true one is away, and comes back afterwards."""
    parent = whole.ends["parent"]
    whole.kill("enclave")
    yield whole
    whole.start("enclave")
    assert whole.ask("c1", "tcp", INTERNET, 5_000).split()[0] == PARENT
    assert whole.ends["parent"] is parent
    assert parent.poll() is None


def closed(sock):
    """Wait until the other side has ended the connection."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass


@pytest.mark.xdist_group("net-faults")
@pytest.mark.parametrize("lie", LIES)
def test_a_lying_peer_loses_its_connection_with_the_reason_in_the_log(lab, lie):
    before = len(lab.log("parent"))
    with impostor(lab, LIES[lie]) as sock:
        if lie == "half":
            sock.shutdown(socket.SHUT_WR)
        closed(sock)
    reason = "the peer closed" if lie == "half" else "malformed: "
    until(lambda: reason in lab.log("parent")[before:], 5, lab.logs)


@pytest.mark.xdist_group("net-faults")
@pytest.mark.parametrize(
    "hello",
    [b"\x00" * HELLO_SIZE, b"ENST\x09" + b"\x00" * 7, Hello(5, 1_500, 0).encode(), b"EN"],
)
def test_a_hello_that_is_none_never_takes_the_true_ones_place(whole, hello):
    before = whole.call("get_status")["reconnects"]
    with impostor(whole, hello=hello) as sock:
        sock.shutdown(socket.SHUT_WR)
        closed(sock)
    assert whole.ask("c1", "tcp", INTERNET, 5_000).split()[0] == PARENT
    assert whole.call("get_status")["reconnects"] == before


@pytest.mark.xdist_group("net-faults")
def test_a_crowd_of_silent_strangers_is_bounded_and_the_true_one_stays(whole):
    with ExitStack() as crowd:
        for _ in range(100):
            crowd.enter_context(stranger(whole))
        assert whole.ask("c1", "tcp", INTERNET, 5_000).split()[0] == PARENT
        assert whole.log("parent").count("link.refused") >= 100 - MOST_STRANGERS


@pytest.mark.xdist_group("net-faults")
def test_a_flood_of_good_hellos_costs_the_parent_little(lab):
    """Each takes the session over: not faster than sessions can be made, and few wait."""
    parent = lab.ends["parent"]
    with ExitStack() as crowd:
        for number in range(400):
            sock = crowd.enter_context(stranger(lab))
            with suppress(BrokenPipeError):
                sock.sendall(Hello(0, 1_500, 0).encode())
            if number % 50 == 0:
                children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
                assert len(os.listdir(f"/proc/{parent.pid}/fd")) < 100
                assert len(children.split()) <= 4
    assert parent.poll() is None


@pytest.mark.xdist_group("net-faults")
def test_hellos_while_the_device_is_made_again_end_nothing(lab):
    parent = lab.ends["parent"]
    lab.do("par", "ip", "link", "del", "tun0")
    end = time.monotonic() + 3
    while time.monotonic() < end:
        with stranger(lab) as sock, suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(Hello(0, 1_500, 0).encode())
            sock.recv(HELLO_SIZE)
        time.sleep(0.02)
    assert parent.poll() is None, lab.logs()
    until(lambda: "tun0" in lab.do("par", "ip", "link"), 10, lab.logs)


@pytest.mark.xdist_group("net-faults")
def test_a_flood_of_frames_grows_no_memory_and_is_counted(lab):
    """Spoofed, forbidden and good packets, as fast as they are taken."""
    flood = [
        frame(offload() + ipv4(source="1.1.1.1")) * 2_000,
        frame(offload() + ipv4(destination="169.254.169.254")) * 2_000,
        frame(offload() + ipv4(source=ENCLAVE, destination="9.9.9.9")) * 2_000,
        PING_FRAME * 1_000,
    ]
    with impostor(lab) as sock:
        # Pumps start, and get the buffers that they keep.
        for _ in range(5):
            sock.sendall(b"".join(flood))
        time.sleep(0.5)
        before = memory_kib(lab, "parent")
        for _ in range(30):
            sock.sendall(b"".join(flood))
        assert memory_kib(lab, "parent") < before + 2_000


@pytest.mark.xdist_group("net-faults")
def test_a_peer_that_reads_nothing_stops_the_pump_and_grows_nothing(lab):
    """The device's queue fills and the kernel drops: nothing of ours gets larger."""
    with impostor(lab) as sock:
        sock.sendall(PING_FRAME)
        time.sleep(0.5)  # both pumps have started
        before = memory_kib(lab, "parent")
        code = (
            "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nend = time.time() + 2\n"
            f"while time.time() < end:\n    try: s.sendto(b'x' * 1400, ({ENCLAVE!r}, 9))\n    except OSError: pass"
        )
        lab.do("par", sys.executable, "-c", code)
        assert memory_kib(lab, "parent") < before + 2_000
        dropped = json.loads(lab.do("par", "ip", "-j", "-s", "link", "show", "tun0"))
        assert dropped[0]["stats64"]["tx"]["dropped"] > 0


@pytest.mark.parametrize("kind", ["tun", "nfqueue"])
def test_a_device_deleted_under_us_is_made_again(tmp_path, kind):
    with running(tmp_path, kind=kind) as lab:
        lab.serve("inet", 5_000)
        held = Held(lab, "c1", ELSEWHERE, 5_000)
        for space in ("enc", "par") if kind == "tun" else ("enc",):
            lab.do(space, "ip", "link", "del", "tun0")
            until(lambda: lab.ask("c1", "tcp", INTERNET, 5_000).split()[0] == PARENT, 20, lab.logs)
        assert held.still_there(), lab.logs()
        held.end()
        assert all(process.poll() is None for process in lab.ends.values())


@pytest.mark.parametrize("kind", ["tun", "nfqueue"])
def test_sigterm_drains_and_a_restart_keeps_connections(tmp_path, kind):
    with running(tmp_path, kind=kind) as lab:
        lab.serve("inet", 5_000)
        held = Held(lab, "c1", ELSEWHERE, 5_000)
        lab.stop()
        lab.start()
        assert held.still_there(), lab.logs()
        held.end()
        lab.stop()
        for end in ("enclave", "parent"):
            assert "Traceback" not in lab.log(end)
        lab.remove("enclave")
        lab.remove("parent")
        for space in ("enc", "par"):
            assert "tun0" not in lab.do(space, "ip", "link")
            assert "NETSTACK" not in lab.do(space, "iptables-legacy-save")
            assert lab.do(space, "nft", "list", "ruleset") == ""


def test_a_container_that_opens_ever_more_connections_takes_only_its_own(tmp_path):
    """The connection table cannot be filled by one: its neighbours still connect."""
    with running(tmp_path, inside={"connections": 100}) as lab:
        lab.serve("inet", 5_000)
        code = (
            "import socket\nfor port in range(2000, 5000):\n"
            "    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', port))\n"
            f"    s.sendto(b'x', ({INTERNET!r}, 6000)); s.close()"
        )
        lab.do("c1", sys.executable, "-c", code)
        count = int(lab.do("enc", "cat", "/proc/sys/net/netfilter/nf_conntrack_count"))
        assert count < 250
        assert lab.ask("c2", "tcp", INTERNET, 5_000).split()[0] == PARENT
        assert lab.ask("enc", "tcp", INTERNET, 5_000).split()[0] == PARENT
        assert lab.blocked("c1", "udp", INTERNET, 5_000)


def test_a_second_service_does_not_take_the_device_of_the_first(tmp_path):
    with running(tmp_path) as lab:
        config = f"{tmp_path}/enclave.toml"
        second = subprocess.run(
            [*lab.enter("enc"), sys.executable, "-m", "netstack", "enclave", "--config", config],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert second.returncode == 1
        assert "netstack: error: tun0: Device or resource busy" in second.stderr


def test_mistakes_of_the_operator_are_told_in_one_line(tmp_path):
    (tmp_path / "x.toml").write_text('uplink = "eth77"\n')
    for arguments, said in (
        (("parent", "--config", f"{tmp_path}/x.toml"), "there is no interface eth77"),
        (("parent", "--config", f"{tmp_path}/y.toml"), "cannot read"),
        (("enclave", "--config", f"{tmp_path}/x.toml"), "uplink: a section is wanted"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "netstack", *arguments],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert run("true") == ""
