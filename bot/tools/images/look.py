"""The command line for enclave images: what is in one, what is measured of it, and what two of them differ in."""

import argparse
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from bot.files import read_bounded
from bot.image.difference import differences
from bot.image.eif import BadEif, Eif, decode_eif_untrusted
from bot.image.pcrs import pcrs_of
from bot.image.ramdisk import decode_ramdisk_untrusted
from bot.image.seal import certificate_untrusted
from bot.terminal import say, say_json
from nips.tee.nec03 import pcr8_of

MOST_BYTES = 2 << 30
LARGEST = 20


def add_commands(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`pcrs`, `inspect` and `diff`."""
    for name, text, files, do in (
        ("pcrs", "what is measured of it", ("file",), _pcrs),
        ("inspect", "its parts, and the largest files in it", ("file",), _inspect),
        ("diff", "what changed from one to the other", ("one", "other"), _diff),
    ):
        action = actions.add_parser(name, help=text)
        for file in files:
            action.add_argument(file, type=Path)
        action.add_argument("--json", action="store_true")
        action.set_defaults(do=do)


def read_eif(path: Path) -> Eif:
    """Raises `BadEif`."""
    try:
        return decode_eif_untrusted(read_bounded(path, MOST_BYTES))
    except OSError as error:
        raise BadEif(f"{path}: {error.strerror}") from error


def measured(eif: Eif) -> dict[str, str]:
    """By names, as ``nitro-cli`` prints them. Raises `BadEif` for a signature that does not hold."""
    pcrs = pcrs_of(eif)
    if eif.signature is not None:
        certificate = certificate_untrusted(eif.signature, pcrs[0])
        pcrs[8] = pcr8_of(certificate.public_bytes(Encoding.DER))
    return {f"PCR{index}": pcr.hex() for index, pcr in pcrs.items()}


def _pcrs(options: argparse.Namespace) -> int:
    told = measured(read_eif(options.file))
    if options.json:
        say_json(told)
    else:
        say(*(f"{name}  {pcr}" for name, pcr in told.items()))
    return 0


def files_of(eif: Eif) -> list[tuple[int, str]]:
    """Sizes and places, the largest first. Raises `BadCpio`."""
    found = [
        (len(entry.content), f"ramdisk {number}, {entry.path.decode(errors='backslashreplace')}")
        for number, ramdisk in enumerate(eif.ramdisks, start=1)
        for entry in decode_ramdisk_untrusted(ramdisk)
    ]
    return sorted(found, reverse=True)


def _inspect(options: argparse.Namespace) -> int:
    eif = read_eif(options.file)
    files = files_of(eif)
    largest = files[:LARGEST]
    parts = [(kind.name.lower(), len(data)) for kind, data in eif.sections()]
    if options.json:
        told = {"cmdline": eif.cmdline.decode(errors="replace"), "parts": parts}
        say_json(told | {"pcrs": measured(eif), "largest": largest, "files": len(files)})
        return 0
    say(*(f"{name:<10} {size:>12,} bytes" for name, size in parts))
    say(f"command line: {eif.cmdline.decode(errors='replace')}")
    say(*(f"{name}  {pcr}" for name, pcr in measured(eif).items()))
    say(f"{len(files)} files; the largest:", *(f"{size:>12,}  {path}" for size, path in largest))
    return 0


def _diff(options: argparse.Namespace) -> int:
    """As diff(1): 1 when they differ."""
    found = list(differences(read_eif(options.one), read_eif(options.other)))
    if options.json:
        say_json([{"where": d.where, "what": d.what, "pcrs": d.pcrs} for d in found])
    else:
        say(*map(str, found))
    return 1 if found else 0
