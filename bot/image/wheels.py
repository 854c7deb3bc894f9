"""Python's part of a lock: wheels for the image's Python and C library, whatever runs here."""

import subprocess
import sys
import tempfile
from pathlib import Path

from bot.image.apt import CannotFetch, sha256_of
from bot.image.contents import GLIBC_MINOR, PYTHON
from bot.image.lock import BadLock, Lock, Wheel

_MANYLINUX = [f"manylinux_2_{minor}_x86_64" for minor in range(5, GLIBC_MINOR + 1)]
_PLATFORMS = [*_MANYLINUX, "manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]


def chosen_wheels(requirements: Path, folder: Path) -> list[Wheel]:
    """Those that fit the image, of what a requirements file with hashes allows. Raises `CannotFetch`."""
    _download(requirements, folder)
    return [Wheel(file.name, sha256_of(file)) for file in sorted(folder.glob("*.whl"))]


def fetch_wheels(lock: Lock, folder: Path) -> list[Path]:
    """Exactly these files. What is in the folder already is not fetched again. Raises `CannotFetch`, `BadLock`."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [wheel for wheel in lock.wheels if not (folder / wheel.file).exists()]
    if missing:
        lines = [f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in missing]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
            requirements.writelines(lines)
            requirements.flush()
            _download(Path(requirements.name), folder)
    files = [folder / wheel.file for wheel in lock.wheels]
    for wheel, file in zip(lock.wheels, files, strict=True):
        if not file.exists():
            raise CannotFetch(f"{wheel.file} is not what fits Python {PYTHON} any more")
        if sha256_of(file) != wheel.sha256:
            file.unlink()
            raise BadLock(f"{wheel.file} does not have the hash that the lock names")
    return files


def _download(requirements: Path, folder: Path) -> None:
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--require-hashes", "--only-binary", ":all:", "--python-version", PYTHON, "--implementation", "cp",
            *platforms, "-d", str(folder), "-r", str(requirements),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CannotFetch(f"pip: {done.stdout[-1_000:].strip()}")
