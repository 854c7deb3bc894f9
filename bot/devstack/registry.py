"""DEVELOPMENT ONLY. A real registry (Debian's docker-registry), and pushing images to it."""

from pathlib import Path
from urllib.parse import urlencode

import httpcore

from bot.devstack.sample import MANIFEST, Image


def configuration(folder: Path, address: str) -> str:
    """docker-registry's YAML."""
    return (
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n"
        f"    rootdirectory: {folder}/images\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n"
    )


async def is_ready(address: str) -> bool:
    async with httpcore.AsyncConnectionPool() as pool:
        try:
            return (await pool.request("GET", f"http://{address}/v2/")).status == 200
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError):
            return False


async def push(address: str, repository: str, tag: str, image: Image) -> str:
    """Upload blobs and manifest by the registry's own protocol; the manifest's digest."""
    base = f"http://{address}/v2/{repository}"
    async with httpcore.AsyncConnectionPool() as pool:
        for digest, blob in image.blobs.items():
            begun = await pool.request("POST", f"{base}/blobs/uploads/")
            location = next(v.decode() for k, v in begun.headers if k.lower() == b"location")
            location = location if location.startswith("http") else f"http://{address}{location}"
            url = f"{location}{'&' if '?' in location else '?'}{urlencode({'digest': digest})}"
            headers = [
                ("Content-Type", "application/octet-stream"),
                ("Content-Length", str(len(blob))),
            ]
            _expect(await pool.request("PUT", url, headers=headers, content=blob), 201)
        headers = [("Content-Type", MANIFEST), ("Content-Length", str(len(image.manifest)))]
        _expect(
            await pool.request(
                "PUT", f"{base}/manifests/{tag}", headers=headers, content=image.manifest
            ),
            201,
        )
    return image.digest


def _expect(response: httpcore.Response, status: int) -> None:
    if response.status != status:
        raise RuntimeError(f"the registry answers {response.status}: {response.content[:300]!r}")
