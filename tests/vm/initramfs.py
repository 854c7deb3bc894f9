"""A root file system in memory: busybox, this Python, what netstack needs, kernel modules."""

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

from bot.image.cpio import Entry, encode_cpio

REPO = Path(__file__).resolve().parents[2]
MODULES = (
    "virtio_mmio", "vmw_vsock_virtio_transport", "tun", "veth", "bridge",
    "nf_conntrack", "iptable_filter", "iptable_mangle", "iptable_nat",
    "xt_conntrack", "xt_connlimit", "xt_nat", "xt_tcpudp", "xt_addrtype",
    "ip6table_mangle", "ip6table_filter",
)  # fmt: skip
PACKAGES = (
    "trio",
    "outcome",
    "attr",
    "attrs",
    "sniffio",
    "sortedcontainers",
    "idna",
    "structlog",
    "pyroute2",
)
PROGRAMS = ("setpriv", "xtables-legacy-multi")
LINKS = ("iptables-legacy", "iptables-legacy-save", "iptables-legacy-restore", "ip6tables-legacy",
         "ip6tables-legacy-save", "ip6tables-legacy-restore")  # fmt: skip
_UNNEEDED = re.compile(r"/(test|tests|idlelib|tkinter|lib2to3|ensurepip|turtledemo|config-[^/]*|site-packages|dist-packages|__pycache__)(/|$)")  # fmt: skip


class Archive:
    """Entries of an initramfs."""

    def __init__(self):
        self._entries = {}

    def file(self, path, content, mode=0o644):
        self._put(path, stat.S_IFREG | mode, content)

    def link(self, path, target):
        self._put(path, stat.S_IFLNK | 0o777, str(target).encode())

    def folder(self, path):
        self._put(path, stat.S_IFDIR | 0o755, b"")

    def _put(self, path, mode, content):
        path = os.path.normpath(str(path).strip("/"))
        parent = os.path.dirname(path)
        if parent and parent not in self._entries:
            self.folder(parent)
        self._entries.setdefault(path, (mode, content))

    def copy(self, source, path=None):
        """A file, with the libraries it needs when it is a program."""
        source = Path(source)
        real = source.resolve()
        self.file(path or source, real.read_bytes(), 0o755 if os.access(real, os.X_OK) else 0o644)
        if real.read_bytes()[:4] == b"\x7fELF":
            for library in _libraries(real):
                self.file(library, Path(library).resolve().read_bytes(), 0o755)

    def tree(self, source):
        for folder, _, names in os.walk(source):
            if _UNNEEDED.search(folder.removeprefix(str(source)) + "/"):
                continue
            for name in names:
                if not name.endswith((".pyc", ".a")):
                    self.copy(Path(folder) / name)

    def write(self, path):
        entries = [Entry(os.fsencode(p), mode, raw) for p, (mode, raw) in self._entries.items()]
        with path.open("wb") as out:
            out.writelines(encode_cpio(entries, 0))


def _libraries(program):
    listed = subprocess.run(
        ["ldd", str(program)], capture_output=True, text=True, check=False
    ).stdout
    return re.findall(r"(/\S+\.so\S*)", listed)


def build(kernel, path):
    """Returns ``path``."""
    archive = Archive()
    for name in ("dev", "proc", "sys", "run", "tmp", "etc"):
        archive.folder(name)
    archive.copy(shutil.which("busybox"), "/bin/busybox")
    archive.link("/bin/sh", "busybox")
    for name in PROGRAMS:
        archive.copy(shutil.which(name), f"/usr/sbin/{name}")
    for name in LINKS:
        archive.link(f"/usr/sbin/{name}", "xtables-legacy-multi")
    for library in Path("/usr/lib/x86_64-linux-gnu/xtables").glob("lib[ix]*t_*.so"):
        archive.copy(library)
    _add_python(archive)
    modules = kernel.modules(MODULES)
    for name, content in modules:
        archive.file(f"/modules/{name}.ko", content)
    archive.file("/init", _init([name for name, _ in modules]).encode(), 0o755)
    archive.write(path)
    return path


def _add_python(archive):
    """The interpreter with its standard library at its own places, and our packages at /app."""
    archive.copy(sys.executable, "/usr/bin/python3")
    stdlib = Path(sysconfig.get_path("stdlib"))
    archive.tree(stdlib)
    archive.folder("/app")
    for name in PACKAGES:
        found = Path(importlib.util.find_spec(name).origin).parent
        _add_package(archive, found, f"/app/{name}")
    _add_package(archive, REPO / "netstack", "/app/netstack")
    # What reads control groups, alone: the rooms around it bring libraries that the guest does not have.
    for name in ("bot/adapters/engine/cgroup.py", "handlers/domain/limits.py"):
        archive.copy(REPO / name, f"/groups/{name}")
    archive.copy(REPO / "tests/net/who.py", "/app/who.py")
    archive.copy(Path(__file__).with_name("agent.py"), "/app/agent.py")


def _add_package(archive, source, target):
    for file in source.rglob("*"):
        inside = file.relative_to(source)
        if file.is_file() and file.suffix != ".pyc" and "tests" not in inside.parts:
            archive.copy(file, f"{target}/{inside}")


def _init(modules):
    inserted = "".join(
        f"$b insmod /modules/{name}.ko || echo no module {name}\n" for name in modules
    )
    return (
        "#!/bin/busybox sh\nb=/bin/busybox\n"
        "$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev\n"
        f"{inserted}"
        "$b mkdir -p /dev/net; [ -e /dev/net/tun ] || $b mknod /dev/net/tun c 10 200\n"
        "$b ip link set lo up\n"
        f"export PATH=/usr/bin:/usr/sbin:/bin PYTHONHOME={sys.base_prefix} PYTHONPATH=/app\n"
        "echo AGENT; exec /usr/bin/python3 /app/agent.py\n"
    )
