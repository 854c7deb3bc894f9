"""Both data planes over real AF_VSOCK: the enclave is a guest, the parent a namespace of this machine."""

import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.net.lab import INTERNET, PARENT, START_S, Lab, until
from tests.vm.machine import CID, Machine

CONTAINER = "10.200.0.2"
PUBLISHED = 20_000
# Emulated, everything takes its time.
SLOW_MS = 15_000
PYTHON = "/usr/bin/python3"

pytestmark = pytest.mark.xdist_group("vm")


@pytest.fixture(scope="module")
def vm():
    folder = Path(tempfile.mkdtemp(prefix="vm-", dir="/tmp"))
    machine = Machine(folder, {1_080: f"{folder}/in.sock"})
    began = time.monotonic()
    try:
        version = machine.boot()
        machine.said = f"VM: Linux {version} booted in {time.monotonic() - began:.1f} s"
        _add_container(machine)
        yield machine
    finally:
        machine.stop()
        shutil.rmtree(folder)


def _add_container(vm):
    """A namespace of the guest's, behind a bridge, as Docker makes it."""
    pid = vm.start("/bin/busybox", "unshare", "-n", "/bin/busybox", "sleep", "100000")
    vm.write("/tmp/container", str(pid))
    vm.do(PYTHON, "-c", (
        "from pyroute2 import IPRoute\n"
        "with IPRoute() as ip:\n"
        "    ip.link('add', ifname='br1', kind='bridge'); br = ip.link_lookup(ifname='br1')[0]\n"
        "    ip.addr('add', index=br, address='10.200.0.1', prefixlen=28)\n"
        f"    ip.link('add', ifname='v1', kind='veth', peer={{'ifname': 'e1', 'net_ns_pid': {pid}}})\n"
        "    ip.link('set', index=br, state='up')\n"
        "    ip.link('set', index=ip.link_lookup(ifname='v1')[0], master=br, state='up')\n"
    ))  # fmt: skip
    inside(vm, "/bin/busybox", "sh", "-c", (
        f"b=/bin/busybox; $b ip link set lo up; $b ip addr add {CONTAINER}/28 dev e1; $b ip link set e1 up;"
        "$b ip route add default via 10.200.0.1"
    ))  # fmt: skip
    vm.start("/bin/busybox", "nsenter", f"--net=/proc/{_pid(vm)}/ns/net", PYTHON, "-I", "-S", "/app/who.py", "serve", "8080")  # fmt: skip


# Namespace packages: the guest has two files of ours, and no __init__.
GROUPS = r"""
import os, subprocess, sys, time
from pathlib import Path
from bot.adapters.engine.cgroup import Freezer, group_of_cores, joining, limits_of, pids
root, box = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/tenants/box")
assert (root / "cgroup.controllers").exists(), "one tree"
procs = group_of_cores("engine", 50)
assert "50000 100000" == (root / "engine/cpu.max").read_text().strip()
here = subprocess.run([*joining(procs), "/bin/busybox", "cat", "/proc/self/cgroup"], capture_output=True, text=True).stdout
assert "0::/engine" == here.strip(), here
(root / "cgroup.subtree_control").write_text("+memory +pids")
box.mkdir(parents=True)
(box.parent / "cgroup.subtree_control").write_text("+memory +pids +cpu")
for name, value in (("memory.max", "50000000"), ("pids.max", "16"), ("cpu.max", "90000 100000")):
    (box / name).write_text(value)
told = limits_of("/tenants", "box")
assert (49_999_872, 16, 90_000) == (told.memory_bytes, told.pids, told.cpu_quota_us), told
process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
(box / "cgroup.procs").write_text(str(process.pid))
assert [process.pid] == pids("/tenants", "box")
def used_us():
    return int((box / "cpu.stat").read_text().split()[1])
def moves():
    before = used_us(); time.sleep(1.0); return used_us() - before > 10_000
freezer = Freezer("/tenants", "box")
assert moves() and not freezer.is_frozen()
began = time.monotonic(); freezer.freeze(5); took = time.monotonic() - began
assert freezer.is_frozen() and not moves(), "it stands still"
freezer.thaw()
assert not freezer.is_frozen() and moves()
freezer.freeze(5); process.kill(); assert -9 == process.wait(), "on v2 a frozen process dies"
print(f"{took * 1e3:.1f}")
"""


def test_control_groups_of_one_tree_as_an_enclaves_kernel_has_them(vm, record_property):
    busybox = "/bin/busybox"
    vm.do(busybox, "mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup")
    said = vm.do(busybox, "env", "PYTHONPATH=/groups", PYTHON, "-c", GROUPS, timeout=120)
    record_property("figure", f"frozen on cgroup v2, emulated: {said.strip()} ms")
    assert 0 < float(said) < 5_000


def _pid(vm):
    return vm.do("/bin/busybox", "cat", "/tmp/container").strip()


def inside(vm, *command, **more):
    """In the container."""
    return vm.do("/bin/busybox", "nsenter", f"--net=/proc/{_pid(vm)}/ns/net", *command, **more)


def ask(vm, kind, host, port, size=10, where=inside):
    words = ("ask", kind, host, str(port), "0", str(size), str(SLOW_MS))
    for _ in range(
        3 if kind == "udp" else 1
    ):  # as any client asks again: two guests share two cores
        said = where(vm, PYTHON, "-I", "-S", "/app/who.py", *words, timeout=120).strip()
        if not said.startswith("ERR"):
            break
    return said


def host_of(vm, *command, **more):
    return vm.do(*command, **more)


class Joined:
    """A lab's parent here, and the enclave in the guest."""

    def __init__(self, lab, vm):
        self.lab, self.vm = lab, vm
        text = (lab.folder / "parent.toml").read_text()
        for name, port in (("packets", 1_081), ("control", 1_082), ("out", 1_080)):
            text = text.replace(f"{lab.folder}/{name}.sock", f"{vm.base}_{port}")
        text = text.replace(f"{lab.folder}/in.sock", f"{vm.folder}/in.sock")
        (lab.folder / "parent.toml").write_text(text)
        vm.write("/tmp/enclave.toml", (
            'packets = "vsock:3:1081"\ncontrol = "vsock:3:1082"\nresolver = false\n'
            'raw_listen = "vsock:any:1080"\nraw_peer = "vsock:3:1080"\n'
            f'[plane]\nkind = "{lab.kind}"\n[inside]\ncontainers = ["10.200.0.0/16"]\n'
        ))  # fmt: skip
        self.enclave = None

    def start_enclave(self):
        self.vm.do("/bin/busybox", "rm", "-f", "/tmp/ready")
        self.enclave = self.vm.start(PYTHON, "-m", "netstack", "enclave", "--config", "/tmp/enclave.toml",
                                     "--ready-file", "/tmp/ready")  # fmt: skip

        def ready():
            return (
                self.vm.do("/bin/busybox", "ls", "/tmp/ready", check=False).strip() == "/tmp/ready"
            )

        until(ready, 60, self.logs)

    def start_parent(self):
        lab = self.lab
        with (lab.folder / "parent.log").open("a") as log:
            lab.ends["parent"] = lab.spawn(
                "par", sys.executable, "-m", "netstack", "parent", "--config", f"{lab.folder}/parent.toml", stderr=log
            )  # fmt: skip

    def kill_enclave(self):
        self.vm.kill(self.enclave)

    def logs(self):
        return (
            self.lab.logs()
            + self.vm.do("/bin/busybox", "cat", "/tmp/log")[-3_000:]
            + self.vm.console()[-2_000:]
        )

    def open_port(self):
        """As the server in the enclave, and as Docker."""
        code = (
            "import trio\nfrom netstack import control, vsock\n"
            f"trio.run(lambda: control.call(vsock.parse_address('unix:/run/netstack/control.sock'), 'set_ports', tcp=[{PUBLISHED}]))"
        )
        self.vm.do(PYTHON, "-c", code)
        self.vm.do("/usr/sbin/iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-m", "addrtype",
                   "--dst-type", "LOCAL", "--dport", str(PUBLISHED), "-j", "DNAT", "--to-destination", f"{CONTAINER}:8080")  # fmt: skip


@pytest.fixture(scope="module", params=["tun", "nfqueue"])
def joined(request, vm, tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"), kind=request.param, containers=False)
    with ExitStack() as stack:
        stack.callback(lab.down)
        lab.up()
        lab.serve("inet", 5_000)
        both = Joined(lab, vm)
        both.start_parent()
        both.start_enclave()
        stack.callback(_clean, both)
        both.open_port()
        yield both


def _clean(both):
    both.kill_enclave()
    both.vm.do(PYTHON, "-m", "netstack", "enclave", "--config", "/tmp/enclave.toml", "--remove")
    both.vm.do("/usr/sbin/iptables-legacy", "-t", "nat", "-F", "PREROUTING")


def test_the_streams_are_real_af_vsock(joined, record_property):
    record_property("figure", joined.vm.said)
    assert CID == 16
    assert "/dev/vsock" in joined.vm.do("/bin/busybox", "ls", "/dev/vsock")
    code = "import socket, fcntl, struct; print(struct.unpack('I', fcntl.ioctl(open('/dev/vsock'), 0x7b9, bytes(4)))[0])"
    assert int(joined.vm.do(PYTHON, "-c", code)) == CID


@pytest.mark.parametrize("where", [inside, host_of])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_outwards(joined, where, kind):
    answer = ask(joined.vm, kind, INTERNET, 5_000, 900, where)
    assert answer.split()[0] == PARENT, (answer, joined.logs())
    assert answer.split()[2] == "900"


def test_many_megabytes_arrive_whole(joined):
    size = (20 if joined.lab.kind == "tun" else 2) << 20
    began = time.monotonic()
    assert ask(joined.vm, "tcp", INTERNET, 5_000, size).split()[2] == str(size)
    assert time.monotonic() - began < 60


def test_a_large_datagram_arrives_in_fragments(joined):
    assert ask(joined.vm, "udp", INTERNET, 5_000, 8_000).split()[2] == "8000"


def test_ping(joined):
    said = inside(joined.vm, "/bin/busybox", "ping", "-c", "3", "-W", "5", INTERNET, check=False)
    assert "3 packets received" in said


def answer_inbound(joined, port):
    """A port of the client's that no test used before: the guest remembers connections that ended."""
    port += 100 if joined.lab.kind == "nfqueue" else 0
    answer = joined.lab.ask("inet", "tcp", PARENT, PUBLISHED, port, timeout_ms=SLOW_MS)
    assert answer.split() == [INTERNET, str(port), "10"]


def test_inbound_with_the_clients_address(joined):
    answer_inbound(joined, 7_777)


def test_forbidden_networks_are_out_of_reach(joined):
    for address in ("169.254.169.254", "10.9.9.9", "10.118.0.1"):
        said = inside(
            joined.vm,
            PYTHON,
            "-I",
            "-S",
            "/app/who.py",
            "ask",
            "tcp",
            address,
            "5000",
            "0",
            "10",
            "1500",
        )
        assert said.startswith("ERR")


@pytest.mark.parametrize("end", ["enclave", "parent"])
def test_it_comes_back_after_kill_9(joined, end):
    if end == "enclave":
        joined.kill_enclave()
        joined.start_enclave()
    else:
        joined.lab.kill("parent")
        joined.start_parent()
    until(
        lambda: ask(joined.vm, "tcp", INTERNET, 5_000).startswith(PARENT), START_S * 3, joined.logs
    )
    answer_inbound(joined, 7_778 if end == "enclave" else 7_779)
