"""The root as a container image: one plain tar, and an OCI layout around it (OCI image spec 1.1). The same tree, the same bytes.

The layer is not compressed: then its digest is that of the tar, and no version of a packer matters.
"""

import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bot.image.cpio import Entry
from bot.image.eif import Eif
from bot.image.ramdisk import decode_ramdisk_untrusted

COMMAND = ["tini", "-s", "--", "/usr/local/sbin/enclave.sh"]
_ROOT = b"rootfs/"
_KIND = "application/vnd.oci.image"
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
}


def write_tar(entries: Iterable[Entry], time: int, path: Path) -> None:
    """In the order of paths; ``time``: of all files, Unix seconds."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for entry in sorted(entries, key=lambda entry: entry.path):
            info = tarfile.TarInfo(entry.path.decode(errors="surrogateescape"))
            info.type = _TYPES[stat.S_IFMT(entry.mode)]
            info.mode, info.mtime = stat.S_IMODE(entry.mode), time
            info.uid, info.gid = entry.uid, entry.gid
            is_link = stat.S_ISLNK(entry.mode)
            info.linkname = entry.content.decode(errors="surrogateescape") if is_link else ""
            info.size = 0 if is_link else len(entry.content)
            archive.addfile(info, io.BytesIO(entry.content))


def write_layout(tar: Path, time: int, folder: Path) -> str:
    """Around a tar in the same file system, which stays where it is. Returns the image's digest."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    with tar.open("rb") as opened:
        layer = hashlib.file_digest(opened, "sha256").hexdigest()
    size = tar.stat().st_size
    (blobs / layer).hardlink_to(tar)
    created = datetime.fromtimestamp(time, UTC).isoformat()
    config = _blob(blobs, {
        "created": created, "architecture": "amd64", "os": "linux", "config": {"Cmd": COMMAND},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
    })  # fmt: skip
    layers = [_descriptor("layer.v1.tar", f"sha256:{layer}", size)]
    manifest = _blob(blobs, {
        "schemaVersion": 2, "mediaType": f"{_KIND}.manifest.v1+json",
        "config": _descriptor("config.v1+json", *config), "layers": layers,
    })  # fmt: skip
    index = {"schemaVersion": 2, "manifests": [_descriptor("manifest.v1+json", *manifest)]}
    (folder / "index.json").write_bytes(_json(index))
    (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    return manifest[0]


def _descriptor(kind: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": f"{_KIND}.{kind}", "digest": digest, "size": size}


def _blob(blobs: Path, value: dict[str, object]) -> tuple[str, int]:
    raw = _json(value)
    digest = hashlib.sha256(raw).hexdigest()
    (blobs / digest).write_bytes(raw)
    return f"sha256:{digest}", len(raw)


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def root_entries(eif: Eif) -> Iterable[Entry]:
    """The root that an image unpacks to, under its own paths. Raises `BadCpio`."""
    found: dict[bytes, Entry] = {}
    for ramdisk in eif.ramdisks:
        for entry in decode_ramdisk_untrusted(ramdisk):
            if entry.path.startswith(_ROOT):
                found[entry.path] = replace(entry, path=entry.path.removeprefix(_ROOT))
    return found.values()
