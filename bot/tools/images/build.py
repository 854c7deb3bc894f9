"""``enclaved image lock`` and ``build``: from a checkout to a file that an enclave is started from."""

import argparse
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bot.clock import SystemClock
from bot.image import build, oci
from bot.image.eif import Eif, encode_eif
from bot.image.lock import Lock, encode_lock, lock_differences
from bot.image.pcrs import pcrs_of
from bot.terminal import say, say_json, tell
from bot.tools.images.look import LARGEST, files_of


def add_commands(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Beside those that look into an image."""
    lock = actions.add_parser(
        "lock", help="renew build/lock.json from what Debian and PyPI have now"
    )
    lock.set_defaults(do=_lock)
    made = actions.add_parser("build", help="build the image of this checkout")
    made.add_argument(
        "--layer",
        type=Path,
        default=build.LAYER,
        help="a folder that lies over the root: etc/enclaved/",
    )
    made.add_argument("--out", type=Path, default=Path("enclaved.eif"))
    made.add_argument(
        "--root", type=Path, metavar="FOLDER", help="its root as well: root.tar, and an OCI layout"
    )
    made.add_argument("--json", action="store_true")
    made.set_defaults(do=_build)


def _lock(_: argparse.Namespace) -> int:
    """What changed, a line each."""
    before = build.read_lock() if build.LOCK.exists() else None
    folder = Path(tempfile.mkdtemp(prefix="enclaved-lock-"))
    try:
        now = datetime.fromtimestamp(SystemClock().now(), UTC)
        new = build.renewed_lock(now, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    build.LOCK.write_text(encode_lock(new))
    say(*(lock_differences(before, new) if before else [_summary(new)]))
    return 0


def _summary(lock: Lock) -> str:
    return f"{len(lock.root)} packages, {len(lock.wheels)} wheels, {len(lock.tools)} to build with"


def _build(options: argparse.Namespace) -> int:
    clock, lock = SystemClock(), build.read_lock()
    began_ms = clock.boot_ms()
    eif = build.build(lock, options.layer)
    raw = encode_eif(eif)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(raw)
    if options.root is not None:
        _write_root(eif, lock, options.root)
    pcrs = {f"PCR{index}": pcr.hex() for index, pcr in pcrs_of(eif).items()}
    if options.json:
        say_json({"file": str(options.out), "bytes": len(raw)} | pcrs)
    else:
        say(*(f"{size:>12,}  {path}" for size, path in files_of(eif)[:LARGEST]))
        took_s = (clock.boot_ms() - began_ms) / 1_000
        say(
            f"{options.out}: {len(raw):,} bytes, in {took_s:.0f} s",
            *(f"{name}  {pcr}" for name, pcr in pcrs.items()),
        )
    return 0


def _write_root(eif: Eif, lock: Lock, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Of an earlier build; whatever else lies there stays.
    shutil.rmtree(folder / "oci", ignore_errors=True)
    (folder / "root.tar").unlink(missing_ok=True)
    oci.write_tar(oci.root_entries(eif), lock.epoch_s, folder / "root.tar")
    digest = oci.write_layout(folder / "root.tar", lock.epoch_s, folder / "oci")
    tell(f"{folder}/root.tar, {folder}/oci: {digest}")
