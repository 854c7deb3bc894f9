"""The root file system of an enclave, from the files of a lock alone: the same files, the same tree.

base   Debian's packages, wheels, everything compiled; slow to make, and the same for every commit
tree   the base with what of this repository runs inside
"""

import os
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bot.image import apt
from bot.image.contents import NOT_RUN, PYTHON, ROOT
from bot.image.lock import BadLock, Lock

REPO = Path(__file__).resolve().parents[2]
PACKAGES = f"usr/local/lib/python{PYTHON}/dist-packages"
STDLIB = f"usr/lib/python{PYTHON}"
# Names and versions of everything of the lock that is in the image, for who compares two images.
LIST = "usr/share/enclaved/packages"
ROOMS = ("bot", "handlers", "keycrux_client", "netstack", "nips")
# What is for who builds and signs has no business inside; nor, DEVELOPMENT ONLY, what signs with roots of its own.
_LEFT_OUT = ("bot/devstack/", "bot/image/", "bot/tools/images/")
_PROGRAMS = {
    "enclave.sh": "usr/local/sbin/enclave.sh",
    "build/image/heartbeat": "usr/local/sbin/heartbeat",
    "build/image/enclaved": "usr/local/bin/enclaved",
}
OWN = (*(f"{PACKAGES}/{room}" for room in ROOMS), *_PROGRAMS.values())
# What mmdebstrap takes over from the machine that builds.
_SAID = {"etc/hostname": "enclave\n", "etc/resolv.conf": ""}
# Whatever the builder's environment says of time zone, language or hashing is not heard.
_PLAIN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
MOST_WHEEL_BYTES = 512 << 20


class CannotBuild(Exception):
    """A program that builds a part failed; the message is what it said."""


def build_base(lock: Lock, debs: Sequence[Path], wheels: Sequence[Path], base: Path) -> None:
    """Into an empty folder. Raises `CannotBuild`, `BadLock`, OSError."""
    _install(lock, debs, base)
    _leave_out(base)
    for place, text in _SAID.items():
        (base / place).write_text(text)
        (base / place).chmod(0o644)
    # The engine's rules and netstack's are in one table of the kernel.
    for name in ("iptables", "ip6tables"):
        link = base / "etc/alternatives" / name
        link.unlink()
        link.symlink_to(f"/usr/sbin/{name}-legacy")
    for wheel in wheels:
        _unpack(wheel, base / PACKAGES)
    listed = [f"{each.name} {each.version}\n" for each in lock.root]
    listed += [f"{each.name} {each.version}\n" for each in lock.wheels]
    (base / LIST).parent.mkdir(parents=True)
    (base / LIST).write_text("".join(sorted(listed)))
    _compile(base, [STDLIB, PACKAGES])
    _settle(base, ["usr/local", "usr/share/enclaved", STDLIB])


def build_tree(base: Path, own: Mapping[str, bytes], tree: Path) -> None:
    """The base and our own, by their places, into an empty folder. Raises `CannotBuild`, OSError."""
    said(["cp", "-a", "--reflink=auto", f"{base}/.", str(tree)])
    for inside, content in own.items():
        copy = tree / inside
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    for place in _PROGRAMS.values():
        (tree / place).chmod(0o755)
    _compile(tree, [f"{PACKAGES}/{room}" for room in ROOMS])
    _settle(tree, OWN)


def own_files() -> Iterator[tuple[Path, str]]:
    """What of this repository is in an image, and where it lies there."""
    for name, place in _PROGRAMS.items():
        yield REPO / name, place
    for room in ROOMS:
        for path in sorted((REPO / room).rglob("*")):
            inside = str(path.relative_to(REPO))
            if _is_ours(inside) and path.is_file() and not path.is_symlink():
                yield path, f"{PACKAGES}/{inside}"


def _is_ours(inside: str) -> bool:
    """What else lies in a checkout, keys and notes among it, is nobody's business."""
    is_code = inside.endswith((".py", ".sql")) or inside == "bot/release.json"
    return is_code and not inside.startswith(_LEFT_OUT)


def said(command: Sequence[str], *, epoch_s: int = 0, timeout_s: int = 1_800) -> str:
    """What a program printed. Raises `CannotBuild`."""
    done = subprocess.run(
        command,
        env=_PLAIN | ({"SOURCE_DATE_EPOCH": str(epoch_s)} if epoch_s else {}),
        timeout=timeout_s,
        umask=0o022,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CannotBuild(f"{' '.join(command[:3])}: {done.stdout[-2_000:].strip()}")
    return done.stdout


# -- Debian's part --------------------------------------------------------------------------------------------


def _install(lock: Lock, debs: Sequence[Path], base: Path) -> None:
    """By mmdebstrap, from a repository that has these packages and no others."""
    archive = base.with_name(f"{base.name}.archive")
    shutil.rmtree(archive, ignore_errors=True)
    _make_archive(lock, debs, archive)
    excluded = [f"/usr/share/{name}/*" for name in ("doc", "man", "locale", "info", "lintian")]
    said(
        [
            "mmdebstrap", "--variant=essential", "--mode=root", "--format=directory", "--quiet",
            "--skip=check/empty", f"--include={','.join(ROOT)}", '--aptopt=APT::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude={path}" for path in excluded),
            lock.suite, str(base), f"deb [trusted=yes] copy:{archive} {lock.suite} main",
        ],
        epoch_s=lock.epoch_s,
    )  # fmt: skip
    shutil.rmtree(archive)
    there = set(
        said(["dpkg-query", f"--root={base}", "-W", "-f", "${Package} ${Version}\n"]).splitlines()
    )
    if wrong := there ^ {f"{package.name} {package.version}" for package in lock.root}:
        raise BadLock(f"the lock and what is installed from it differ: {', '.join(sorted(wrong))}")


def _make_archive(lock: Lock, debs: Sequence[Path], archive: Path) -> None:
    """Trusted without a signature: every file was compared with the lock."""
    suite = archive / f"dists/{lock.suite}"
    packages = suite / "main/binary-amd64/Packages"
    for folder in (packages.parent, archive / "pool"):
        folder.mkdir(parents=True)
    for deb in debs:
        (archive / "pool" / deb.name).symlink_to(deb)
    packages.write_text("".join(apt.index(debs, "pool")))
    line = f" {apt.sha256_of(packages)} {packages.stat().st_size} main/binary-amd64/Packages\n"
    date = datetime.fromtimestamp(lock.epoch_s, UTC).strftime("%a, %d %b %Y %H:%M:%S UTC")
    (suite / "Release").write_text(
        f"Suite: {lock.suite}\nCodename: {lock.suite}\nDate: {date}\nArchitectures: amd64\nComponents: main\nSHA256:\n{line}"
    )


def _leave_out(base: Path) -> None:
    for folder, folders, files in os.walk(base):
        inside = os.path.relpath(folder, base)
        for name in [*folders, *files]:
            path = os.path.normpath(f"{inside}/{name}")
            if name == "__pycache__" or NOT_RUN.fullmatch(path):
                _remove(Path(folder, name))
        folders[:] = [name for name in folders if Path(folder, name).is_dir()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# -- Python's part --------------------------------------------------------------------------------------------


def _unpack(wheel: Path, packages: Path) -> None:
    """PEP 427. What it would have beside the library, programs and headers, is left out."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".data/" not in name]
        if any(name.startswith("/") or ".." in name.split("/") for name in names):
            raise BadLock(f"{wheel.name} has a path that leads out of it")
        if sum(info.file_size for info in archive.infolist()) > MOST_WHEEL_BYTES:
            raise BadLock(f"{wheel.name} is larger than {MOST_WHEEL_BYTES} bytes")
        archive.extractall(packages, names)


def _compile(root: Path, folders: Iterable[str]) -> None:
    """By content, not by date: without it every start compiles anew."""
    command = ["python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    said(["chroot", str(root), *command, *(f"/{folder}" for folder in folders)])


def _settle(root: Path, places: Iterable[str]) -> None:
    """Modes are those of the content, whatever umask, zip or checkout they came through."""
    for place in places:
        for path in [root / place, *(root / place).rglob("*")]:
            if not path.is_symlink():
                is_program = path.is_dir() or bool(path.stat().st_mode & stat.S_IXUSR)
                path.chmod(0o755 if is_program else 0o644)
