"""An enclave's image from a checkout: what the lock names, our own, and a layer with the configuration.

ramdisk 1   init, busybox, modules              the same for every release with one kernel
ramdisk 2   rootfs/: Debian and wheels          the same until the lock changes
ramdisk 3   rootfs/: our own, and the layer     what changes

Only the first step needs a network; all others read nothing but what its hashes were checked of.
"""

import json
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path

from bot.files import read_bounded
from bot.image import apt, contents
from bot.image.cache import cache, key_of, made
from bot.image.cpio import BadCpio, Entry
from bot.image.eif import Eif
from bot.image.kernel import Kernel, build_kernel
from bot.image.lock import MOST_BYTES, BadLock, Lock, decode_lock_untrusted, encode_lock
from bot.image.ramdisk import encode_ramdisk
from bot.image.root import OWN, PACKAGES, REPO, build_base, build_tree, own_files
from bot.image.tree import entries_of
from bot.image.wheels import chosen_wheels, fetch_wheels

LOCK, LAYER = REPO / "build/lock.json", REPO / "build/image/layer"
REQUIREMENTS, INIT = REPO / "build/requirements.lock", REPO / "build/image/init"
MEMORY_BYTES, CPUS = 4 << 30, 2
# The kernel unpacks it last; init looks for it.
WHOLE = "rootfs/usr/share/enclaved/whole"
LAYER_HAS, POLICY = "etc/enclaved/", f"{PACKAGES}/bot/release.json"
_ROOM = Path(__file__).parent
PACKER = "backports_zstd"


@dataclass(frozen=True)
class Parts:
    """Folders that must not be written to."""

    base: Path
    kernel: Path


def read_lock() -> Lock:
    """Raises `BadLock`, OSError."""
    return decode_lock_untrusted(read_bounded(LOCK, MOST_BYTES).decode(errors="replace"))


def renewed_lock(now: datetime, folder: Path) -> Lock:
    """What Debian and the requirements file have now. Raises `CannotFetch`, `BadLock`, `subprocess.CalledProcessError`."""
    found = apt.Apt(folder / "apt", contents.SUITE)
    found.update()
    kernel = [
        package
        for package in found.chosen([contents.KERNEL], essential=False)
        if package.name.startswith("linux-image-6")
    ]
    tools = [p for p in found.chosen(contents.TOOLS, essential=True) if p not in kernel]
    versions = {
        p.version for p in (*kernel, *tools) if p.name.startswith(("linux-image", "linux-source"))
    }
    if len(kernel) != 1 or len(versions) != 1:
        raise BadLock(
            f"kernel and sources are of different versions: {', '.join(sorted(versions))}"
        )
    root = found.chosen(contents.ROOT, essential=True)
    wheels = chosen_wheels(REQUIREMENTS, folder / "wheels")
    return Lock(now, contents.SUITE, tuple(root), tuple(kernel), tuple(tools), tuple(wheels))


def fetch_all(lock: Lock) -> tuple[list[Path], list[Path]]:
    """Step 1: packages and wheels, in the cache. Raises `CannotFetch`, `BadLock`."""
    debs = apt.fetch(lock, lock.packages, cache() / "debs")
    return debs, fetch_wheels(lock, cache() / "wheels")


def ready_parts(lock: Lock) -> Parts:
    """Made from the lock alone, or found in the cache. Raises `CannotFetch`, `CannotBuild`, `BadLock`, OSError."""
    # Whoever changes how something is made gets it made anew.
    makers = (path.read_bytes() for path in sorted(_ROOM.glob("*.py")))
    key = key_of([encode_lock(lock).encode(), *makers])

    def make(build_what: str, folder: Path) -> None:
        debs, wheels = fetch_all(lock)
        outside = (*lock.kernel, *lock.tools)
        named = {p.name: deb for p, deb in zip(outside, debs[len(lock.root) :], strict=True)}
        if build_what == "base":
            build_base(lock, debs[: len(lock.root)], wheels, folder)
        else:
            build_kernel(lock, named, folder)

    return Parts(*(made(name, key, partial(make, name)) for name in ("base", "kernel")))


def root() -> Path:
    """The tree of this checkout. Raises `CannotFetch`, `CannotBuild`, `BadLock`, OSError."""
    return ready_tree(ready_parts(read_lock()).base)


def ready_tree(base: Path) -> Path:
    """The whole root of this checkout, as a folder that must not be written to."""
    # Read once: what is edited meanwhile must not get under this key.
    own = {place: file.read_bytes() for file, place in own_files()}
    inputs = [base.name.encode()]
    for place, content in own.items():
        inputs += [place.encode(), content]
    return made("tree", key_of(inputs), partial(build_tree, base, own))


def build(lock: Lock, layer: Path, cmdline: str = contents.CMDLINE) -> Eif:
    """``layer``: a folder that lies over the root: configuration, release policy. Raises `CannotFetch`, `CannotBuild`, `BadLock`,
    `BadCpio`, OSError."""
    _check_packer(lock)
    parts = ready_parts(lock)
    kernel, tree = Kernel.of(parts.kernel), ready_tree(parts.base)
    return Eif(
        kernel=kernel.image.read_bytes(),
        cmdline=cmdline.encode(),
        ramdisks=(
            encode_ramdisk(first_entries(kernel, parts.base, cmdline), lock.epoch_s, packed=False),
            _packed_base(parts.base, lock),
            encode_ramdisk(own_entries(tree, layer), lock.epoch_s, packed=True),
        ),
        metadata=_metadata(lock, kernel.version),
        default_memory_bytes=MEMORY_BYTES,
        default_cpus=CPUS,
    )


def _check_packer(lock: Lock) -> None:
    """Another version packs the same files into other bytes."""
    (locked,) = (wheel.version for wheel in lock.wheels if wheel.name == PACKER)
    if (here := metadata.version(PACKER)) != locked:
        raise BadLock(
            f"{PACKER} is {here} here, and {locked} in the lock: `make setup` brings that"
        )


def first_entries(kernel: Kernel, base: Path, cmdline: str) -> Iterator[Entry]:
    """Ramdisk 1."""
    for name in ("bin", "dev", "modules", "proc", "sys"):
        yield Entry(name.encode(), stat.S_IFDIR | 0o755)
    # Nothing that is measured tells where the kernel ends and its command line begins; init looks.
    yield _file("cmdline", cmdline.encode())
    yield _file("init", INIT.read_bytes(), 0o755)
    yield _file("bin/busybox", (base / "usr/bin/busybox").read_bytes(), 0o755)
    for number, (name, content) in enumerate(kernel.modules(contents.MODULES)):
        yield _file(f"modules/{number:02}-{name}.ko", content)


def own_entries(tree: Path, layer: Path) -> Iterable[Entry]:
    """Ramdisk 3. Raises `BadCpio` for a layer that holds anything else than what is an operator's to choose."""
    found = {entry.path: entry for entry in entries_of(tree, "rootfs", _is_not_ours)}
    for entry in entries_of(layer, "rootfs"):
        inside = entry.path.decode(errors="surrogateescape").removeprefix("rootfs/")
        if stat.S_ISREG(entry.mode) and _is_operators(inside):
            # Modes of a checkout are its owner's umask.
            found[entry.path] = Entry(entry.path, stat.S_IFREG | 0o600, entry.content)
        elif not stat.S_ISDIR(entry.mode):
            raise BadCpio(
                f"a layer has files in {LAYER_HAS}, and the release policy: not {inside}"
            )
    found |= {path: Entry(path, stat.S_IFDIR | 0o755) for path in _parents(found) - found.keys()}
    found[WHOLE.encode()] = _file(WHOLE, b"")
    return found.values()


def _is_operators(path: str) -> bool:
    is_hidden = any(part.startswith(".") for part in path.split("/"))
    return (path.startswith(LAYER_HAS) and not is_hidden) or path == POLICY


def _parents(paths: Iterable[bytes]) -> set[bytes]:
    places = [path.split(b"/") for path in [*paths, WHOLE.encode()]]
    return {b"/".join(parts[:end]) for parts in places for end in range(1, len(parts))}


def _is_not_ours(path: str) -> bool:
    return not any(
        own == path or own.startswith(f"{path}/") or path.startswith(f"{own}/") for own in OWN
    )


def _packed_base(base: Path, lock: Lock) -> bytes:
    """It takes longest to pack, and seldom changes."""

    def pack(folder: Path) -> None:
        entries = entries_of(base, "rootfs")
        (folder / "ramdisk").write_bytes(encode_ramdisk(entries, lock.epoch_s, packed=True))

    return (made("packed", base.name, pack) / "ramdisk").read_bytes()


def _file(path: str, content: bytes, mode: int = 0o644) -> Entry:
    return Entry(path.encode(), stat.S_IFREG | mode, content)


def _metadata(lock: Lock, kernel: str) -> bytes:
    """As nitro-cli's; it is not measured, and its time is the lock's, so that the file is the same as well."""
    return json.dumps(
        {
            "ImageName": "enclaved",
            "ImageVersion": "",
            "BuildMetadata": {
                "BuildTime": lock.time.isoformat(),
                "BuildTool": "enclaved",
                "BuildToolVersion": "",
                "OperatingSystem": f"Debian {lock.suite}",
                "KernelVersion": kernel,
            },
            "DockerInfo": {},
            "CustomMetadata": {},
        },
        separators=(",", ":"),
    ).encode()
