"""The ways: a lab each (namespaces of its own), all up at once, measured in turn."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import debian
from tests.net.lab import INTERNET, Lab, until

REPO = Path(__file__).resolve().parents[2]


class Way:
    """Namespaces ``enc`` and ``inet``, and what carries packets between them."""

    def __init__(self, name, kind="tun"):
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix="bn-", dir="/tmp"))
        self.lab = Lab(self.folder, kind=kind, containers=False)
        self.target = INTERNET

    def up(self):
        self.lab.up()
        self.lab.start()
        self.serve()

    def serve(self):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.lab.spawn("inet", "iperf3", "-s", **quiet)
        self.lab.spawn("inet", sys.executable, "-m", "bench.net.load", "serve", cwd=REPO)
        until(lambda: ":7777 " in self.lab.do("inet", "ss", "-Htln"), 10)

    def cpu_s(self):
        """CPU seconds that all forwarding processes have used so far."""
        return sum(_cpu_s(pid) for end in self.lab.ends.values() for pid in _tree(end.pid))

    def down(self):
        self.lab.down()
        shutil.rmtree(self.folder, ignore_errors=True)


class Direct(Way):
    """The limit: a veth pair and the kernel's NAT, nothing in user space."""

    def up(self):
        lab = self.lab
        lab.up()
        lab.do("enc", "ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1")
        lab.do("enc", "ip", "link", "set", "d1", "netns", lab.space("par"))
        for space, device, address in (("enc", "d0", "10.9.0.2"), ("par", "d1", "10.9.0.1")):
            lab.do(space, "ip", "addr", "add", f"{address}/30", "dev", device)
            lab.do(space, "ip", "link", "set", device, "up")
        lab.do("enc", "ip", "route", "add", "default", "via", "10.9.0.1")
        lab.do("par", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        nat = (
            "table inet n {\nchain p {\ntype nat hook postrouting priority 100\nmasquerade\n}\n}\n"
        )
        lab.do("par", "nft", "-f", "-", text=nat)
        self.serve()

    def cpu_s(self):
        return 0.0


class Gvproxy(Way):
    """gvisor-tap-vsock: TCP ends in its user-space stack. Its forwarder is ours: Debian has only the proxy."""

    def __init__(self, name, program, mtu):
        super().__init__(name)
        self._program, self._mtu = program, mtu

    def up(self):
        lab, sock = self.lab, f"{self.folder}/gv.sock"
        lab.up()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        lab.ends["parent"] = lab.spawn(
            "par", str(self._program), "-mtu", str(self._mtu), "-listen-qemu", f"unix://{sock}",
            "-ssh-port", "-1", **quiet,
        )  # fmt: skip
        until(Path(sock).exists, 10)
        lab.ends["enclave"] = lab.spawn(
            "enc", sys.executable, "-m", "bench.net.tap", sock, str(self._mtu), cwd=REPO
        )
        until(lambda: "tap0" in lab.do("enc", "ip", "link"), 10)
        lab.do("enc", "ip", "addr", "add", "192.168.127.2/24", "dev", "tap0")
        lab.do("enc", "ip", "link", "set", "tap0", "mtu", str(self._mtu), "up")
        lab.do("enc", "ip", "route", "add", "default", "via", "192.168.127.1")
        self.serve()


def every_way():
    """Those that this machine can have."""
    ways = [Direct("direct"), Way("tun"), Way("nfqueue", "nfqueue")]
    try:
        root = debian.fetch("trixie", "gvproxy")
    except (subprocess.CalledProcessError, OSError, StopIteration) as error:
        print(f"without gvproxy: {error}")
        return ways
    program = root / "usr/bin/gvproxy"
    return [
        *ways,
        Gvproxy("gvproxy 1500", program, 1_500),
        Gvproxy("gvproxy 65k", program, 65_000),
    ]


def _tree(pid):
    found = [pid]
    for each in found:
        try:
            text = Path(f"/proc/{each}/task/{each}/children").read_text()
        except OSError:
            continue
        found += [int(child) for child in text.split()]
    return found


def _cpu_s(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
