"""A registry over real HTTP that behaves, breaks off, drips, lies and counts, as a test has it."""

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field

import trio

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
PLAIN = {"os": "linux", "architecture": "amd64", "config": {}}
LAYERS = [{"size": size, "digest": "sha256:" + "e" * 64} for size in (5, 7)]


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Layer:
    """As it is served, and what the config says of it."""

    packed: bytes
    plain: bytes | None = None
    diff_id: str | None = None
    size: int | None = None

    @classmethod
    def of(cls, files: dict[str, bytes], pack=gzip.compress) -> "Layer":
        tar = tar_of(files)
        return cls(pack(tar), tar)


@dataclass
class Sent:
    """How a page is sent: so many bytes of it, and so slowly."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_at: int | None = None  # the connection ends here
    hang_at: int | None = None  # nothing more comes, and nothing ends
    drip_s: float = 0  # a pause after each byte
    ranges: bool = True


class RegistrySite:
    """Answers from ``pages``: path -> (status, headers, body), `Sent`, or a callable of the request's headers."""

    def __init__(self):
        self.pages, self.requests = {}, []
        self.at_once = self.most_at_once = 0

    async def serve(self, task_status=trio.TASK_STATUS_IGNORED):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.host = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._client, listeners)

    async def _client(self, stream):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self._answer(stream)
            await stream.aclose()
        except (trio.BrokenResourceError, ConnectionError):
            pass
        finally:
            self.at_once -= 1

    async def _answer(self, stream):
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(65_536)
            if not more:
                return
            data += more
        head = data.decode().split("\r\n")
        path = head[0].split(" ")[1]
        lines = (line.split(": ", 1) for line in head[1:] if ": " in line)
        headers = {name.lower(): value for name, value in lines}
        self.requests.append((path, headers))
        page = self.pages.get(path.partition("?")[0], (404, {}, b""))
        page = page(headers) if callable(page) else page
        await self._send(stream, page if isinstance(page, Sent) else Sent(*page), headers)

    async def _send(self, stream, sent, headers):
        status, body, also, start = sent.status, sent.body, [], 0
        if sent.ranges and status == 200 and "range" in headers:
            start = int(headers["range"].removeprefix("bytes=").removesuffix("-"))
            status, body = 206, sent.body[start:]
            also = [("Content-Range", f"bytes {start}-{len(sent.body) - 1}/{len(sent.body)}")]
        fields = [*also, *(pair for pair in sent.headers.items() if not pair[0].startswith("2:"))]
        # The same header twice: "2:Name".
        fields += [(k[2:], v) for k, v in sent.headers.items() if k.startswith("2:")]
        lines = "".join(f"{k}: {v}\r\n" for k, v in fields)
        await stream.send_all(
            f"HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode()
        )
        end = len(body)
        for at in (sent.cut_at, sent.hang_at):
            end = end if at is None else max(0, min(end, at - start))
        if sent.drip_s:
            for index in range(end):
                await stream.send_all(body[index : index + 1])
                await trio.sleep(sent.drip_s)
        else:
            await stream.send_all(body[:end])
        if sent.hang_at is not None and end < len(body):
            await trio.sleep_forever()

    def image(self, name="a", *, config=None, layers=None, tag="1"):
        """Documents alone, for what only resolves; the manifest's digest."""
        layers = LAYERS if layers is None else layers
        config = {**PLAIN, **(config or {})}
        config["config"] = {"Cmd": ["/app"], **config["config"]}
        config.setdefault("rootfs", {"diff_ids": ["sha256:" + "d" * 64] * len(layers)})
        return self._put(name, tag, config, layers)

    def whole_image(self, *layers, name="a", tag="1", config=None):
        """With its layers; the manifest's digest."""
        diff_ids = [
            layer.diff_id or digest(layer.packed if layer.plain is None else layer.plain)
            for layer in layers
        ]
        config = {**PLAIN, "config": {"Cmd": ["/app"]}, **(config or {})}
        config["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
        config["history"] = [{"created_by": "a test"} for _ in layers]
        listed = []
        for layer in layers:
            self.pages[blob_path(name, digest(layer.packed))] = Sent(body=layer.packed)
            size = len(layer.packed) if layer.size is None else layer.size
            listed.append({"digest": digest(layer.packed), "size": size})
        return self._put(name, tag, config, listed)

    def _put(self, name, tag, config, layers):
        raw = json.dumps(config).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"digest": digest(raw), "size": len(raw)},
                "layers": layers,
            }
        ).encode()
        self.pages[blob_path(name, digest(raw))] = (200, {}, raw)
        for key in (tag, digest(manifest)):
            self.pages[f"/v2/{name}/manifests/{key}"] = (200, {"Content-Type": MANIFEST}, manifest)
        return digest(manifest)

    def asked(self, part):
        """How often a path with this in it was asked for."""
        return sum(part in path for path, _ in self.requests)


def blob_path(name, wanted):
    return f"/v2/{name}/blobs/{wanted}"
