"""Debian's cloud kernel as it is, and its modules; one of them compiled anew.

Nitro names its devices on the kernel's command line. Debian's ``virtio_mmio`` is built without reading that, so the same source
is compiled with it, by Debian's own compiler, in a fixed folder: the result is the same everywhere.
"""

import lzma
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bot.image.lock import BadLock, Lock
from bot.image.root import said

REBUILT = "virtio_mmio"
SOURCE = "drivers/virtio/virtio_mmio.c"
_MAKEFILE = f"obj-m := {REBUILT}.o\nccflags-y := -DCONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=1\n"
_SIGNED = b"~Module signature appended~\n"
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True)
class Kernel:
    """``image``: what is booted. ``files``: a module's name, and where it lies."""

    version: str
    image: Path
    files: Mapping[str, Path]

    @classmethod
    def of(cls, folder: Path) -> "Kernel":
        """As `build_kernel` left it."""
        (image,) = (folder / "boot").glob("vmlinuz-*")
        files = {_name(file): file for file in folder.rglob("*.ko*")}
        files |= {REBUILT: folder / f"{REBUILT}.ko"}
        return cls(image.name.removeprefix("vmlinuz-"), image, files)

    def modules(self, names: Iterable[str]) -> list[tuple[str, bytes]]:
        """With those that they need, in an order in which they can be inserted. Raises `BadLock`."""
        ordered: dict[str, bytes] = {}

        def add(name: str) -> None:
            if name in ordered or name not in self.files:  # what is built in has no file
                return
            content = _without_signature(_read(self.files[name]))
            for each in _depends(content):
                add(each)
            ordered[name] = content

        for name in names:
            if name not in self.files:
                raise BadLock(f"the kernel {self.version} has no module {name}")
            add(name)
        return list(ordered.items())


def build_kernel(lock: Lock, debs: Mapping[str, Path], folder: Path) -> None:
    """``debs``: of the kernel and the tools, by their packages' names. Into an empty folder. Raises `CannotBuild`, OSError."""
    for package in lock.kernel:
        said(["dpkg-deb", "-x", str(debs[package.name]), str(folder)])
    tools = folder.with_name(f"{folder.name}.tools")
    shutil.rmtree(tools, ignore_errors=True)
    tools.mkdir()
    source = next(package for package in lock.tools if package.name.startswith("linux-source-"))
    for package in lock.tools:
        if package is not source:
            said(["dpkg-deb", "-x", str(debs[package.name]), str(tools)])
    # What an alternative of Debian's would have chosen.
    (tools / "usr/bin/awk").symlink_to("mawk")
    module = tools / "module"
    module.mkdir()
    (module / "Makefile").write_text(_MAKEFILE)
    (module / f"{REBUILT}.c").write_bytes(_source(debs[source.name], source.name))
    (headers,) = (tools / "usr/src").glob("linux-headers-*-amd64")
    make = ["make", "-C", f"/usr/src/{headers.name}", "M=/module", "CC=gcc-14", "modules"]
    said(["chroot", str(tools), *make])
    shutil.copy(module / f"{REBUILT}.ko", folder)
    shutil.rmtree(tools)


def _source(deb: Path, name: str) -> bytes:
    """One file of the sources."""
    unpack = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
    with unpack, tarfile.open(fileobj=unpack.stdout, mode="r|") as package:
        for member in package:
            if member.name.endswith(f"/{name}.tar.xz") and (packed := package.extractfile(member)):
                with tarfile.open(fileobj=packed, mode="r|xz") as sources:
                    for each in sources:
                        if each.name == f"{name}/{SOURCE}" and (file := sources.extractfile(each)):
                            content = file.read()
                            unpack.kill()
                            return content
    raise BadLock(f"{deb.name} has no {SOURCE}")


def _name(file: Path) -> str:
    return file.name.split(".ko")[0].replace("-", "_")


def _read(file: Path) -> bytes:
    content = file.read_bytes()
    return lzma.decompress(content) if file.suffix == ".xz" else content


def _without_signature(content: bytes) -> bytes:
    """The whole image is measured; checking each module again takes seconds under emulation. (include/linux/module_signature.h)"""
    if not content.endswith(_SIGNED):
        return content
    end = len(content) - len(_SIGNED)
    size = int.from_bytes(content[end - 4 : end], "big")
    return content[: end - 12 - size]


def _depends(content: bytes) -> Sequence[str]:
    found = _DEPENDS.search(content)
    names = found[1].decode().split(",") if found else []
    return [name.replace("-", "_") for name in names if name]
