"""Resolving images: a real registry where there is one, and registries that lie."""

import gzip
import hashlib
import json

import pytest
import trio

from bot.adapters.guarded_network import is_public
from bot.adapters.oci_registry import OciRegistry
from bot.adapters.registry_client import RegistryConfig
from handlers.domain.image import parse_image_ref
from handlers.ports import ImageProblem

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


LAYERS = [{"size": size, "digest": "sha256:" + "e" * 64} for size in (5, 7)]
PLAIN = {"os": "linux", "architecture": "amd64", "config": {}}


class FakeSite:
    """A registry over HTTP that answers from a dict of path -> (status, headers, body), or a callable."""

    def __init__(self):
        self.pages, self.requests = {}, []

    async def serve(self, task_status=trio.TASK_STATUS_IGNORED):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.host = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._client, listeners)

    async def _client(self, stream):
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(65_536)
            if not more:
                return
            data += more
        head = data.decode().split("\r\n")
        path = head[0].split(" ")[1]
        headers = {
            k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if ": " in line)
        }
        self.requests.append((path, headers))
        page = self.pages.get(path.partition("?")[0], (404, {}, b""))
        status, sent, body = page(headers) if callable(page) else page
        lines = "".join(f"{k}: {v}\r\n" for k, v in sent.items())
        try:
            await stream.send_all(
                f"HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode()
                + body
            )
            await stream.aclose()
        except trio.BrokenResourceError:
            pass

    def image(self, name="a", *, config=None, layers=None, tag="1"):
        layers = LAYERS if layers is None else layers
        config = {**PLAIN, **(config or {})}
        config["config"] = {"Cmd": ["/app"], **config["config"]}
        config.setdefault("rootfs", {"diff_ids": ["sha256:" + "d" * 64] * len(layers)})
        config = json.dumps(config).encode()
        manifest = json.dumps(
            {"mediaType": MANIFEST, "config": {"digest": digest(config)}, "layers": layers}
        ).encode()
        self.pages[f"/v2/{name}/blobs/{digest(config)}"] = (200, {}, config)
        for key in (tag, digest(manifest)):
            self.pages[f"/v2/{name}/manifests/{key}"] = (200, {"Content-Type": MANIFEST}, manifest)
        return digest(manifest)


@pytest.fixture
async def site(nursery):
    made = FakeSite()
    await nursery.start(made.serve)
    return made


async def resolve(site, text="a:1", credentials=None):
    registry = OciRegistry(RegistryConfig((site.host,), credentials or {}))
    try:
        return await registry.resolve(parse_image_ref(f"{site.host}/{text}"))
    finally:
        await registry.aclose()


async def test_tag_digest_sizes_labels_ports_and_volumes(site):
    config = {
        "os": "linux", "architecture": "amd64",
        "config": {"Labels": {"signers": "x"}, "ExposedPorts": {"80/tcp": {}, "53": {}}, "Volumes": {"/data": {}}},
    }  # fmt: skip
    manifest_digest = site.image(config=config)
    for text in ("a:1", f"a@{manifest_digest}"):
        found = await resolve(site, text)
        assert manifest_digest == found.digest
        assert (12, {"signers": "x"}) == (found.compressed_bytes, found.labels)
        assert (("53/tcp", "80/tcp"), ("/data",)) == (found.ports, found.volumes)


async def test_an_index_is_followed_to_linux_amd64(site):
    manifest_digest = site.image()
    entries = [
        {
            "digest": "sha256:" + "0" * 64,
            "mediaType": MANIFEST,
            "platform": {"os": "linux", "architecture": "arm64"},
        },
        {
            "digest": manifest_digest,
            "mediaType": MANIFEST,
            "platform": {"os": "linux", "architecture": "amd64"},
        },
    ]
    site.pages["/v2/a/manifests/multi"] = (
        200,
        {},
        json.dumps({"mediaType": INDEX, "manifests": entries}).encode(),
    )
    assert manifest_digest == (await resolve(site, "a:multi")).digest
    site.pages["/v2/a/manifests/arm"] = (
        200,
        {},
        json.dumps({"mediaType": INDEX, "manifests": entries[:1]}).encode(),
    )
    assert "no image for linux/amd64" in (await resolve(site, "a:arm")).text


async def test_bearer_tokens_with_and_without_credentials(site):
    site.image()
    manifest = site.pages["/v2/a/manifests/1"]

    def guarded(headers):
        if headers.get("authorization") != "Bearer good":
            return (
                401,
                {
                    "Www-Authenticate": f'Bearer realm="http://{site.host}/token",service="s",scope="x"'
                },
                b"",
            )
        return manifest

    for path in list(site.pages):
        page = site.pages[path]
        site.pages[path] = lambda headers, page=page: (
            guarded(headers) if guarded(headers)[0] == 401 else page
        )
    site.pages["/token"] = lambda headers: (
        (200, {}, b'{"token":"good"}')
        if headers.get("authorization", "").startswith("Basic ")
        else (403, {}, b"")
    )
    assert isinstance(await resolve(site), ImageProblem)
    assert not isinstance(await resolve(site, credentials={site.host: "me:secret"}), ImageProblem)
    assert any("scope=repository%3Aa%3Apull" in path for path, _ in site.requests)


async def test_credentials_are_not_taken_along_to_another_host(site, nursery):
    other = FakeSite()
    await nursery.start(other.serve)
    site.image()
    path = next(p for p in site.pages if "/blobs/" in p)
    other.pages["/blob"] = site.pages[path]
    site.pages[path] = (307, {"Location": f"http://{other.host}/blob"}, b"")
    manifest = site.pages["/v2/a/manifests/1"]
    site.pages["/v2/a/manifests/1"] = lambda h: (
        manifest if "authorization" in h else (401, {"Www-Authenticate": 'Basic realm="x"'}, b"")
    )
    registry = OciRegistry(RegistryConfig((site.host, other.host), {site.host: "me:secret"}))
    found = await registry.resolve(parse_image_ref(f"{site.host}/a:1"))
    await registry.aclose()
    assert not isinstance(found, ImageProblem)
    assert "authorization" not in other.requests[0][1]


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ((404, {}, b""), "no such image"),
        ((500, {}, b""), "answers 500"),
        ((200, {}, b"not json"), "no image"),
        ((200, {}, b"[]"), "no image"),
        ((200, {}, b"{}"), "unknown kind"),
        ((200, {}, b'{"mediaType":"' + MANIFEST.encode() + b'"}'), "no image"),
        ((200, {}, b"x" * (5 << 20)), "too large"),
        ((200, {"Content-Encoding": "gzip"}, gzip.compress(b"{}")), "no image"),
        ((307, {"Location": "http://127.0.0.1:1/"}, b""), "unprotected"),
        ((307, {"Location": "/v2/a/manifests/1"}, b""), "without end"),
        ((401, {"Www-Authenticate": 'Bearer realm="http://169.254.169.254/"'}, b""), "unprotected token server"),
        ((401, {"Www-Authenticate": "Bearer " + "a" * 10_000}, b""), "too long"),
        ((401, {}, b""), "credentials"),
    ],
)  # fmt: skip
# httpcore leaves its inner generators to the garbage collector when a body is not read to its end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_registry_that_misbehaves(site, page, reason):
    site.pages["/v2/a/manifests/1"] = page
    found = await resolve(site)

    assert isinstance(found, ImageProblem)
    assert reason in found.text


async def test_a_digest_that_does_not_match_is_refused(site):
    manifest_digest = site.image()
    path = f"/v2/a/manifests/{manifest_digest}"
    site.pages[path] = (200, {}, site.pages[path][2] + b" ")

    assert "something else than the digest" in (await resolve(site, f"a@{manifest_digest}")).text


@pytest.mark.parametrize("volume", ["/", "data", "/a/../b", "/a:b", "/" + "x" * 300])
async def test_dangerous_volume_paths_are_refused(site, volume):
    site.image(
        config={"os": "linux", "architecture": "amd64", "config": {"Volumes": {volume: {}}}}
    )

    assert "volume" in (await resolve(site)).text


@pytest.mark.parametrize(
    "host", ["127.0.0.1:1", "localhost:5000", "10.0.0.1", "169.254.169.254", "[::1]"]
)
async def test_private_addresses_are_never_connected_to(host):
    registry = OciRegistry(RegistryConfig())
    try:
        found = await registry.resolve(parse_image_ref(f"{host}/a:1"))
        assert "cannot be reached" in found.text
        assert "not a public address" in found.text
    except ValueError:
        assert host.startswith("[")
    await registry.aclose()


@pytest.mark.parametrize(
    ("address", "public"),
    [("8.8.8.8", True), ("2606:4700::1111", True), ("10.1.2.3", False), ("100.64.0.1", False), ("224.0.0.1", False),
     ("::1", False), ("fe80::1%eth0", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
     ("::ffff:127.0.0.1", False), ("::7f00:1", False), ("fec0::1", False), ("0.0.0.0", False)],
)  # fmt: skip
def test_what_is_a_public_address(address, public):
    assert public == is_public(address)


async def test_a_silent_registry_is_given_up(site, monkeypatch, autojump_clock):
    monkeypatch.setattr("bot.adapters.oci_registry.RESOLVE_S", 0.5)

    async def hang(*args):
        await trio.sleep_forever()

    registry = OciRegistry(RegistryConfig((site.host,)))
    monkeypatch.setattr(registry, "_once", hang)
    found = await registry.resolve(parse_image_ref(f"{site.host}/a:1"))
    assert not found.permanent
    await registry.aclose()


@pytest.mark.dockerd
async def test_a_real_registry(ground):
    from bot.devstack.registry import push
    from bot.devstack.sample import build_image

    image = build_image(labels={"signers": "ab" * 32})
    pushed = await push(ground.registry, "real/app", "1", image)
    registry = OciRegistry(RegistryConfig((ground.registry,)))
    for text in ("real/app:1", f"real/app@{pushed}"):
        found = await registry.resolve(parse_image_ref(f"{ground.registry}/{text}"))
        assert (pushed, ("8080/tcp",), ("/data",)) == (found.digest, found.ports, found.volumes)
    missing = await registry.resolve(parse_image_ref(f"{ground.registry}/real/none:1"))
    assert missing.permanent
    await registry.aclose()
