"""DEVELOPMENT ONLY. A small web app as an OCI image, from Debian's static busybox: no registry, no build."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
APPLETS = (
    "sh",
    "httpd",
    "cat",
    "echo",
    "sleep",
    "ls",
    "date",
    "nc",
    "wget",
    "id",
    "ping",
    "touch",
    "dd",
    "yes",
)
PAGE = "<!doctype html><title>It runs</title><h1>It runs</h1><p>A stranger deployed this over Nostr.\n"
SERVE = "echo hello from the sample app; echo units: $UNITS; exec httpd -f -v -p 8080 -h /www"


@dataclass(frozen=True)
class Image:
    """Everything a registry needs: blobs by digest, and the manifest."""

    blobs: Mapping[str, bytes]
    manifest: bytes

    @property
    def digest(self) -> str:
        return _digest(self.manifest)


def build_image(
    command: str = SERVE,
    *,
    ports: tuple[str, ...] = ("8080/tcp",),
    volumes: tuple[str, ...] = ("/data",),
    labels: Mapping[str, str] | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> Image:
    """A root with busybox and a page, whose first process runs ``command`` in a shell."""
    tar = _root_tar({"www/index.html": PAGE.encode(), **(extra or {})})
    layer = gzip.compress(tar, 1, mtime=0)
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Cmd": ["/bin/sh", "-c", command],
                "Env": ["PATH=/bin"],
                "ExposedPorts": {port: {} for port in ports},
                "Volumes": {path: {} for path in volumes},
                "Labels": {"version": "1.0.0", **(labels or {})},
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(tar)]},
            "history": [{"created_by": "enclaved devstack"}],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": _digest(config), "size": len(config)},
            "layers": [{"mediaType": LAYER, "digest": _digest(layer), "size": len(layer)}],
        }
    )
    return Image({_digest(config): config, _digest(layer): layer}, manifest)


def _root_tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin", "tmp", "www", "data", "etc"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        _add(tar, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for name, content in files.items():
            # The loader of programs must be executable as well.
            runs = "bin/" in name or ".so" in name
            _add(tar, name, content, 0o755 if runs else 0o644)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
