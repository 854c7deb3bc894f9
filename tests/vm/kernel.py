"""Debian's cloud kernel of bookworm-backports: fetched from the mirror this machine uses, unpacked, not installed."""

import lzma
import re
from dataclasses import dataclass
from pathlib import Path

from tests import debian


@dataclass(frozen=True)
class Kernel:
    """The image to boot, and where its modules lie."""

    version: str
    image: Path
    modules: Path

    def with_dependencies(self, names):
        """Modules in the order in which they can be inserted, as (name, content)."""
        files = {_name(f): f for f in self.modules.rglob("*.ko*")}
        ordered = {}

        def add(name):
            if name in ordered or name not in files:  # what is built in has no file
                return
            content = _unpacked(files[name])
            for each in _depends(content):
                add(each)
            ordered[name] = content

        for name in names:
            assert name in files, f"{self.version} has no module {name}"
            add(name)
        return list(ordered.items())


def _name(file):
    return file.name.split(".ko")[0].replace("-", "_")


def _unpacked(file):
    content = file.read_bytes()
    return lzma.decompress(content) if file.suffix == ".xz" else content


def _depends(content):
    found = re.search(rb"\0depends=([^\0]*)\0", content)
    return [n.replace("-", "_") for n in found[1].decode().split(",") if n] if found else []


def fetch():
    """Once; later runs find it."""
    root = debian.fetch("bookworm-backports", "linux-image-cloud-amd64")
    (image,) = (root / "boot").glob("vmlinuz-*")
    version = image.name.removeprefix("vmlinuz-")
    return Kernel(version, image, root / "lib/modules" / version)
