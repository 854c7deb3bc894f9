"""DEVELOPMENT ONLY. The Dockerfile's image as a tree, built where no registry can be reached.

The base is made by debootstrap, and the classic ``docker build`` does the rest, in a Docker of its own without bridge and
firewall. What takes minutes is kept outside of the checkout, by a hash of what it is made from.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bot.devstack.image import REPO

SUITE, PYTHON = "trixie", "3.13"
BASE = "enclaved-base:1"
START_S, BUILD_S = 30, 1_800
KEPT_TREES = 2
_RECIPE = ("Dockerfile", ".dockerignore", "enclave.sh", "build/image", "build/requirements.lock")
SOURCES = ("bot", "handlers", "keycrux_client", "netstack", "nips")


def cache() -> Path:
    """Outside of the checkout, as XDG says."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "enclaved"


def image_tree() -> Path:
    """The root of an enclave, as a folder that must not be written to. Blocking: minutes the first time, then none.

    Raises `subprocess.CalledProcessError`, whose output says what the build said.
    """
    place = cache()
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place / "root.lock"):
        tree = place / f"root-{_key()}"
        if not tree.exists():
            _build(place, tree)
        tree.touch()
        _forget_others(place, tree)
    return tree


def _key() -> str:
    digest = hashlib.sha256(f"{SUITE} {BASE}".encode())
    for path in sorted(_inputs()):
        digest.update(str(path.relative_to(REPO)).encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:20]


def _inputs() -> Iterator[Path]:
    for name in (*_RECIPE, *SOURCES):
        start = REPO / name
        for path in [start] if start.is_file() else start.rglob("*"):
            inside = path.relative_to(REPO).parts
            if (
                path.is_file()
                and "__pycache__" not in inside
                and inside[:2] != ("bot", "devstack")
            ):
                yield path


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_others(place: Path, tree: Path) -> None:
    others = sorted(place.glob("root-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[KEPT_TREES:]:
        if old != tree:
            shutil.rmtree(old, ignore_errors=True)


def _build(place: Path, tree: Path) -> None:
    with _builder(place / "builder") as docker:
        if subprocess.run(
            [*docker, "image", "inspect", BASE], capture_output=True, check=False
        ).returncode:
            _import_base(place, docker)
        mirror, security = _mirrors()
        arguments = {
            "BASE": BASE,
            "ARCHIVE": mirror,
            "SECURITY": security,
            "PIP_OPTIONS": "--no-index --find-links /tmp/wheels",
        }
        told = [word for pair in arguments.items() for word in ("--build-arg", "=".join(pair))]
        words = ["build", "--quiet", "--network", "host", *told, str(_context(place))]
        classic = os.environ | {"DOCKER_BUILDKIT": "0"}
        built = _said([*docker, *words], env=classic, timeout=BUILD_S)
        image = built.split()[-1]
        container = _said([*docker, "create", image]).split()[-1]
        new = tree.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        export = subprocess.Popen([*docker, "export", container], stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", str(new)], stdin=export.stdout, check=True)
        if export.wait():
            raise subprocess.CalledProcessError(export.returncode, "docker export")
        _said([*docker, "rm", container])
        # Layers of earlier builds; those of this one are the cache of the next.
        _said([*docker, "image", "prune", "-f"])
        new.rename(tree)


def _context(place: Path) -> Path:
    """What the build sees: the inputs alone, and the wheels, which only this side may be able to fetch."""
    context = place / "context"
    shutil.rmtree(context, ignore_errors=True)
    for path in _inputs():
        copy = context / path.relative_to(REPO)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    lock = REPO / "build/requirements.lock"
    wheels = place / f"wheels-{hashlib.sha256(lock.read_bytes()).hexdigest()[:20]}"
    if not wheels.exists():
        _fetch_wheels(lock, wheels)
    shutil.copytree(wheels, context / "build/wheels")
    return context


def _fetch_wheels(lock: Path, wheels: Path) -> None:
    """For the image's Python and Debian 13's C library, whatever runs here."""
    new = wheels.with_suffix(".new")
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(5, 42)]
    platforms += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]
    options = [word for platform in platforms for word in ("--platform", platform)]
    _said([
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:",
        "--python-version", PYTHON, "--implementation", "cp", *options, "-d", str(new), "-r", str(lock),
    ])  # fmt: skip
    new.rename(wheels)


def _mirrors() -> tuple[str, str]:
    """Where Debian, and its security updates, come from on this machine."""
    targets = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Component: main"]
    pairs = [line.split() for line in _said(targets).splitlines() if line.startswith("http")]
    sites = {release: site for site, release in pairs}
    own = next(name for name in sites if f"{name}-security" in sites)
    return sites[own], sites[f"{own}-security"]


def _import_base(place: Path, docker: list[str]) -> None:
    folder = place / "base"
    shutil.rmtree(folder, ignore_errors=True)
    _said(["debootstrap", "--variant=minbase", SUITE, str(folder), _mirrors()[0]], timeout=BUILD_S)
    pack = subprocess.Popen(["tar", "-c", "-C", str(folder), "."], stdout=subprocess.PIPE)
    subprocess.run(
        [*docker, "import", "-", BASE], stdin=pack.stdout, check=True, capture_output=True
    )
    pack.wait()
    shutil.rmtree(folder)


def _said(command: list[str], *, env: dict[str, str] | None = None, timeout: int = 300) -> str:
    done = subprocess.run(
        command,
        env=env,
        timeout=timeout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command[:3], done.stdout[-4_000:])
    return done.stdout


@contextmanager
def _builder(folder: Path) -> Iterator[list[str]]:
    """A Docker that only builds: no bridge, no firewall, so it disturbs none that runs beside it."""
    folder.mkdir(exist_ok=True)
    socket = folder / "docker.sock"
    daemon = [
        "dockerd", "--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false",
        "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "-p", f"{folder}/pid",
        "-H", f"unix://{socket}", "--log-level", "warn",
    ]  # fmt: skip
    (folder / "pid").unlink(missing_ok=True)
    spaces = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child=SIGTERM",
        "--mount-proc",
        "--propagation",
        "private",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*spaces, *daemon], stdout=log, stderr=log, start_new_session=True
        )
    docker = ["docker", "-H", f"unix://{socket}"]
    try:
        _await_docker(docker, process, folder / "log")
        yield docker
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await_docker(docker: list[str], process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + START_S
    while subprocess.run([*docker, "version"], capture_output=True, check=False).returncode:
        if process.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(
                f"the Docker that builds does not start: {log.read_text()[-1_000:]}"
            )
        time.sleep(0.1)
