"""DEVELOPMENT ONLY. The dev wallet as an image: this machine's Python, what the wallet imports, and nothing else."""

import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from bot.devstack.image import REPO
from bot.devstack.sample import Image, build_image
from bot.image.root import ROOMS

# Of the standard library.
LEFT_OUT = frozenset(
    ["test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "turtledemo", "pydoc_data",
     "__pycache__", "dist-packages", "site-packages"]
)  # fmt: skip
PYTHON = Path(sys.executable).resolve()
# Our logs would be coloured by it.
NOT_NEEDED = frozenset(["rich", "pygments", "pip", "setuptools"])
COMMAND = f"PYTHONHOME={sys.base_prefix} PYTHONPATH=/app exec {PYTHON} -m bot.devstack.inside"
_IMPORTED = """
import importlib, sys
importlib.import_module("bot.devstack.inside")
print("\\n".join(name for name in sys.modules if "." not in name))
"""


def wallet_image() -> Image:
    """Blocking, some seconds."""
    return build_image(COMMAND, ports=(), volumes=("/data",), extra=_files())


def _files() -> dict[str, bytes]:
    files = {str(PYTHON).lstrip("/"): PYTHON}
    stdlib = Path(sysconfig.get_path("stdlib"))
    files |= {str(path).lstrip("/"): path for path in _below(stdlib)}
    for room in ROOMS:
        files |= {
            f"app/{p.relative_to(REPO)}": p for p in _below(REPO / room) if p.suffix == ".py"
        }
    packages = Path(sysconfig.get_path("purelib"))
    for path in _imported(packages):
        files[f"app/{path.relative_to(packages)}"] = path
    programs = [path for path in files.values() if ".so" in path.name or path == PYTHON]
    files |= {str(path).lstrip("/"): path for path in _libraries(programs)}
    return {name: path.read_bytes() for name, path in files.items()}


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        # Archives are for who links.
        is_wanted = path.is_file() and path.suffix != ".a"
        if is_wanted and LEFT_OUT.isdisjoint(path.relative_to(folder).parts):
            yield path


def _imported(packages: Path) -> Iterator[Path]:
    """Of the libraries that the wallet needs: all of each."""
    found = subprocess.run(
        [sys.executable, "-c", _IMPORTED], cwd=REPO, check=True, capture_output=True, text=True
    )
    names = {*found.stdout.split(), "cryptography", "websockets"}
    for path in sorted(packages.iterdir()):
        name = path.name.split(".")[0]
        if name in NOT_NEEDED or (name not in names and not path.name.endswith(".libs")):
            continue
        yield from _below(path) if path.is_dir() else [path]


def _libraries(programs: list[Path]) -> set[Path]:
    """Shared libraries, the loader among them, by the names under which they are looked for."""
    told = subprocess.run(
        ["ldd", *map(str, programs)], capture_output=True, text=True, check=False
    )
    found = re.findall(r"(/\S+\.so\S*) \(0x", told.stdout)
    return {Path(name) for name in found}
