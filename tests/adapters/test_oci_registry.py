"""Resolving images: a real registry where there is one, and registries that lie."""

import gzip
import json

import pytest
import trio

from bot.adapters.guarded_network import is_public
from bot.adapters.oci_registry import OciRegistry
from bot.adapters.registry_client import RegistryConfig
from handlers.domain.image import parse_image_ref
from handlers.ports import ImageProblem
from tests.registry_site import INDEX, MANIFEST, RegistrySite, Sent


@pytest.fixture
async def site(nursery):
    made = RegistrySite()
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
    other = RegistrySite()
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


@pytest.mark.parametrize("page", [Sent(body=b"{}", hang_at=1), Sent(body=b"{}" * 50, drip_s=0.05)])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_registry_that_is_silent_or_drips_is_given_up(site, monkeypatch, page):
    monkeypatch.setattr("bot.adapters.oci_registry.RESOLVE_S", 0.5)
    site.pages["/v2/a/manifests/1"] = page
    began = trio.current_time()
    found = await resolve(site)

    assert "too slow" in found.text
    assert not found.permanent
    assert trio.current_time() - began < 5


TOO_MANY = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\\u001b[31m down"}]}'


@pytest.mark.parametrize(
    ("status", "body", "permanent", "words"),
    [
        (429, TOO_MANY, False, "answers 429 (TOOMANYREQUESTS: slow [31m down)"),
        (503, b"<html>", False, "answers 503"),
        (500, b"", False, "answers 500"),
        (400, b'{"errors":[]}', True, "answers 400"),
        (404, b"", True, "no such image"),
        (403, b"", True, "no such image"),
    ],
)
async def test_what_passes_and_what_does_not(site, status, body, permanent, words):
    site.pages["/v2/a/manifests/1"] = (status, {}, body)
    found = await resolve(site)

    assert permanent == found.permanent
    assert words in found.text.replace("  ", " ")


@pytest.mark.parametrize("where", ["manifest", "config", "token"])
async def test_a_fault_behind_the_first_answer_passes_too(site, where):
    site.image()
    config = next(path for path in site.pages if "/blobs/" in path)
    token = f'Bearer realm="http://{site.host}/token",service="s"'
    if where == "token":
        site.pages["/v2/a/manifests/1"] = (401, {"Www-Authenticate": token}, b"")
    broken = {"manifest": "/v2/a/manifests/1", "config": config, "token": "/token"}[where]
    site.pages[broken] = (503, {}, b"")
    found = await resolve(site)

    assert not found.permanent
    assert "answers 503" in found.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Www-Authenticate": 'Basic realm="registry", Bearer realm="{realm}",service="registry"'},
        {"Www-Authenticate": 'Bearer realm="{realm}",service="registry", Basic realm="registry"'},
        {"Www-Authenticate": 'Bearer realm="{realm}",service="registry"', "2:Www-Authenticate": 'Basic realm="registry"'},
        {"Www-Authenticate": 'Basic realm="registry"', "2:Www-Authenticate": 'Bearer realm="{realm}",service="registry"'},
        {"Www-Authenticate": "Bearer realm={realm}, service=registry"},
        {"Www-Authenticate": 'bearer  Realm = "{realm}" , service="registry"'},
    ],
)  # fmt: skip
async def test_a_registry_that_offers_more_than_one_scheme(site, headers):
    """Tokens are preferred, wherever they stand: in one header with others, or in one of two."""
    site.image()
    realm = f"http://{site.host}/token"
    headers = {name: value.replace("{realm}", realm) for name, value in headers.items()}
    for path, page in list(site.pages.items()):
        site.pages[path] = lambda sent, page=page: (
            page if sent.get("authorization") == "Bearer good" else (401, headers, b"")
        )
    site.pages["/token"] = (200, {}, b'{"token":"good"}')

    assert not isinstance(await resolve(site), ImageProblem)
    assert any("service=registry" in path for path, _ in site.requests)


async def test_json_that_is_nested_without_end_is_no_image(site):
    for name, body in {"1": b"[" * 200_000, "2": b'{"a":' * 200_000, "3": b'{"mediaType":NaN}'}.items():  # fmt: skip
        site.pages[f"/v2/a/manifests/{name}"] = (200, {}, body)

        assert "no image" in (await resolve(site, f"a:{name}")).text


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"config": {"Cmd": None, "Entrypoint": []}}, "neither ENTRYPOINT nor CMD"),
        ({"config": {"Cmd": None, "Env": ["PATH=/bin"]}}, "neither ENTRYPOINT nor CMD"),
        ({"rootfs": {"diff_ids": []}}, "do not name the same layers"),
        ({"rootfs": {"diff_ids": ["x", "y"]}}, "SHA-256"),
        ({"rootfs": None}, "no image"),
        ({"architecture": "arm64"}, "not for linux/amd64"),
    ],
)
async def test_a_config_that_could_never_run_is_refused_when_it_is_quoted(site, config, reason):
    site.image(config=config)
    found = await resolve(site)

    assert reason in found.text
    assert found.permanent


async def test_an_entrypoint_alone_is_enough(site):
    site.image(config={"config": {"Cmd": None, "Entrypoint": ["/app"]}})

    assert not isinstance(await resolve(site), ImageProblem)


@pytest.mark.parametrize(
    ("exposed", "ports"),
    [
        (["8000-8003/tcp"], ("8000/tcp", "8001/tcp", "8002/tcp", "8003/tcp")),
        (["53-54/udp", "53"], ("53/tcp", "53/udp", "54/udp")),
        (["9-8/tcp", "0/tcp", "70000/tcp", "80/sctp", "x", "65535-70000"], ("65535/tcp",)),
    ],
)
async def test_ranges_of_ports_are_expanded(site, exposed, ports):
    site.image(config={"config": {"ExposedPorts": {port: {} for port in exposed}}})

    assert ports == (await resolve(site)).ports


async def test_a_range_of_all_ports_is_cut_off_just_beyond_the_bound(site):
    """So that the quote refuses it, without 65,535 strings."""
    site.image(config={"config": {"ExposedPorts": {"1-65535/tcp": {}}}})

    assert 9 == len((await resolve(site)).ports)


async def test_indexes_with_attestations_variants_and_without_platforms(site):
    manifest_digest = site.image()

    def entry(platform=None, wanted="sha256:" + "0" * 64):
        made = {"digest": wanted, "mediaType": MANIFEST}
        return made | ({"platform": platform} if platform else {})

    amd64 = {"os": "linux", "architecture": "amd64"}
    attestation = entry({"os": "unknown", "architecture": "unknown"})
    for tag, entries, expected in (
        ("attested", [attestation, entry(amd64, manifest_digest), attestation], manifest_digest),
        ("variants", [entry(amd64 | {"variant": "v3"}), entry(amd64, manifest_digest)], manifest_digest),
        ("bare", [entry(), entry()], "does not say for which platforms"),
        ("empty", [], "no image for linux/amd64"),
        ("only-attested", [attestation], "no image for linux/amd64"),
        ("nonsense", ["x", 3], "no image"),
    ):  # fmt: skip
        body = json.dumps({"mediaType": INDEX, "manifests": entries}).encode()
        site.pages[f"/v2/a/manifests/{tag}"] = (200, {}, body)
        found = await resolve(site, f"a:{tag}")
        actual = found.text if isinstance(found, ImageProblem) else found.digest
        assert expected in actual


@pytest.mark.parametrize(("length", "fits"), [(65_531, True), (65_532, False)])
async def test_megabytes_of_labels_are_refused(site, length, fits):
    """The engine repeats labels in every list: megabytes of them, read every few seconds, stopped everybody."""
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Labels": {"label": "x" * length}},
    }
    site.image(config=config)
    found = await resolve(site, "a:1")
    assert fits == (not isinstance(found, ImageProblem))
    if not fits:
        assert (True, "the image's labels have more than 65536 characters") == (
            found.permanent,
            found.text,
        )


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
