"""``enclaved image run``: on a Nitro host by ``nitro-cli``, else under emulation, for a look."""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from bot.image import emulate
from bot.terminal import tell
from bot.tools.images.look import read_eif
from bot.tools.maintain import CannotRelease

NITRO = Path("/dev/nitro_enclaves")


def add_commands(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`run`."""
    action = actions.add_parser("run", help="start an image")
    action.add_argument("file", type=Path)
    action.add_argument("--memory", type=int, default=4_096, metavar="MIB")
    action.add_argument("--cpus", type=int, default=2)
    action.add_argument("--cid", type=int, default=16)
    action.add_argument(
        "--emulate",
        action="store_true",
        help="under QEMU: nothing attests it, and its host reads it",
    )
    action.set_defaults(do=_run)


def _run(options: argparse.Namespace) -> int:
    """Becomes the program that runs it."""
    eif = read_eif(options.file)
    if options.emulate:
        folder = Path(tempfile.mkdtemp(prefix="enclaved-emulated-"))
        emulate.unpack(eif, folder)
        tell(
            f"DEVELOPMENT ONLY: emulated, without a security module; kernel and ramdisks lie in {folder}"
        )
        return _become(emulate.command(eif, folder, options.memory))
    if not NITRO.exists():
        raise CannotRelease(
            f"there is no {NITRO}: this is no Nitro host; `--emulate` is for a look"
        )
    return _become(
        [
            "nitro-cli", "run-enclave", "--eif-path", str(options.file), "--memory", str(options.memory),
            "--cpu-count", str(options.cpus), "--enclave-cid", str(options.cid),
        ]
    )  # fmt: skip


def _become(command: list[str]) -> int:
    program = shutil.which(command[0])
    if program is None:
        raise CannotRelease(f"{command[0]} is not installed")
    os.execv(program, command)  # noqa: S606 - by list
