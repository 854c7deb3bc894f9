"""Fetching layers from registries that break off, drip, lie and bomb: over real HTTP, without an engine."""

import gzip
import io
import json
import tarfile
import zlib
from contextlib import suppress
from dataclasses import replace

import pytest
import trio
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from bot.adapters.image_archive import docker_archive
from bot.adapters.image_fetch import Fetch, Pace
from bot.adapters.layer import BadLayer, Kind, LayerCheck, TooLarge
from bot.adapters.layer import Layer as Announced
from bot.adapters.oci_registry import OciRegistry
from bot.adapters.registry_client import Refused, RegistryConfig
from bot.adapters.tar_scan import BadTar, TarScan
from handlers.domain.image import parse_image_ref
from tests.registry_site import Layer, RegistrySite, Sent, blob_path, digest, tar_of

# httpcore leaves its inner generators to the garbage collector when a body is not read to its end.
GARBAGE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ROOM_BYTES = 40_000_000
FILES = {"a": b"a" * 70_000, "b": bytes(range(256)) * 2_000}
pytestmark = [GARBAGE, pytest.mark.usefixtures("short_pauses")]
QUICK = Pace(min_bytes_s=1_000, window_s=0.5, deadline_s=20)


@pytest.fixture
def short_pauses(monkeypatch):
    monkeypatch.setattr("bot.adapters.image_fetch.PAUSE_S", 0.01)


@pytest.fixture
async def site(nursery):
    made = RegistrySite()
    await nursery.start(made.serve)
    return made


async def fetch(site, folder, wanted, *, room_bytes=ROOM_BYTES, pace=QUICK):
    """The layers' kinds, paths and sizes, or the refusal; and the fetch itself."""
    registry = OciRegistry(RegistryConfig((site.host,)))
    try:
        manifest = await registry.manifest(parse_image_ref(f"{site.host}/a@{wanted}"))
        made = Fetch(registry, manifest, folder, room_bytes, pace, trio.CapacityLimiter(2))
        try:
            return manifest, await made.run(), made
        except Refused as refused:
            return manifest, refused, made
    finally:
        await registry.aclose()


def zstd_members(data):
    return b"".join(zstd.compress(data[i : i + 9_000]) for i in range(0, len(data), 9_000))


def gzip_members(data):
    return b"".join(gzip.compress(data[i : i + 9_000]) for i in range(0, len(data), 9_000))


@pytest.mark.parametrize(
    ("pack", "kind"),
    [(bytes, Kind.TAR), (gzip.compress, Kind.GZIP), (gzip_members, Kind.GZIP), (zstd.compress, Kind.ZSTD),
     (zstd_members, Kind.ZSTD)],
)  # fmt: skip
async def test_every_kind_of_layer_is_fetched_and_becomes_an_archive(site, tmp_path, pack, kind):
    layer, second = Layer.of(FILES, pack), Layer.of({"c": b"3"}, pack)
    wanted = site.whole_image(layer, second, layer)
    manifest, layers, made = await fetch(site, tmp_path, wanted)

    assert [kind, kind] == [one.kind for one in layers.values()]
    assert [len(layer.plain), len(second.plain)] == [p.unpacked_bytes for p in layers.values()]
    assert len(layer.packed) + len(second.packed) == made.got_bytes == made.total_bytes
    archive = b"".join(docker_archive(manifest, layers, "x:y"))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = {name: tar.extractfile(name).read() for name in tar.getnames()}
    assert manifest.config == members[f"{manifest.resolved.image_id}.json"]
    unpacked = [content for name, content in members.items() if not name.endswith(".json")]
    assert [layer.plain, second.plain] == unpacked
    names = [f"{digest(one.packed)[7:]}.tar" for one in (layer, second, layer)]
    index = json.loads(members["manifest.json"])[0]
    assert (names, ["x:y"]) == (index["Layers"], index["RepoTags"])


async def test_a_transfer_that_breaks_off_again_and_again_goes_on_where_it_was(site, tmp_path):
    layer = Layer.of({"a": bytes(range(251)) * 8_000}, bytes)
    wanted = site.whole_image(layer)
    cuts = iter([300_000, 700_000, 700_000, 1_500_000])
    path = blob_path("a", digest(layer.packed))
    site.pages[path] = lambda _: Sent(body=layer.packed, cut_at=next(cuts, None))
    _, layers, _ = await fetch(site, tmp_path, wanted)

    assert layer.packed == layers[digest(layer.packed)].path.read_bytes()
    asked = [h.get("range") for p, h in site.requests if p == path]
    assert [None, "bytes=300000-", "bytes=700000-", "bytes=700000-", "bytes=1500000-"] == asked


async def test_a_registry_that_cannot_send_parts_sends_all_again(site, tmp_path):
    layer = Layer.of(FILES, bytes)
    wanted = site.whole_image(layer)
    cuts = iter([100_000])
    site.pages[blob_path("a", digest(layer.packed))] = lambda _: Sent(
        body=layer.packed, cut_at=next(cuts, None), ranges=False
    )
    _, layers, _ = await fetch(site, tmp_path, wanted)

    assert layer.packed == layers[digest(layer.packed)].path.read_bytes()


async def test_what_a_crash_left_on_disk_is_not_fetched_again(site, tmp_path):
    layer = Layer.of(FILES, bytes)
    wanted = site.whole_image(layer)
    (tmp_path / digest(layer.packed)[7:]).write_bytes(layer.packed[:200_000])
    _, layers, _ = await fetch(site, tmp_path, wanted)

    assert layer.packed == layers[digest(layer.packed)].path.read_bytes()
    assert "bytes=200000-" == site.requests[-1][1]["range"]


@pytest.mark.parametrize(
    "left", [b"garbage" * 9_000, b"\x1f\x8b" + b"g" * 5_000, b"x" * 9_000_000]
)
async def test_rubbish_on_disk_costs_one_more_try_and_not_the_image(site, tmp_path, left):
    layer = Layer.of(FILES)
    wanted = site.whole_image(layer)
    (tmp_path / digest(layer.packed)[7:]).write_bytes(left)
    _, layers, _ = await fetch(site, tmp_path, wanted)

    assert layer.plain == layers[digest(layer.packed)].path.read_bytes()


def bomb(size_bytes):
    """A tar with one file of zeros, a thousandth of that in gzip."""
    head = tarfile.TarInfo("zeros")
    head.size = size_bytes
    z = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [z.compress(head.tobuf())]
    parts += [z.compress(bytes(1 << 20)) for _ in range(size_bytes >> 20)]
    return b"".join(parts) + z.flush()


async def test_a_zip_bomb_is_refused_early_with_both_figures(site, tmp_path):
    """300 kB that make 300 MB: no more than its share is ever unpacked."""
    packed = bomb(300 << 20)
    wanted = site.whole_image(Layer(packed, b""))
    _, refused, _ = await fetch(site, tmp_path, wanted)

    assert "its 0.3 MB unpack to more than 40 MB; take more units" in str(refused)
    assert refused.permanent


def test_of_a_bomb_only_the_share_is_unpacked():
    for packed in (bomb(100 << 20), zstd.compress(gzip.decompress(bomb(100 << 20)))):
        check = LayerCheck(Announced(digest(packed), len(packed), ""), 10_000_000)
        with pytest.raises(TooLarge):
            for _ in check.feed(packed):
                pass
        assert check.unpacked_bytes < 12_000_000


async def test_many_small_layers_are_a_bomb_too(site, tmp_path):
    layers = [Layer.of({f"f{n}": bytes(9_000_000)}) for n in range(5)]
    _, refused, _ = await fetch(site, tmp_path, site.whole_image(*layers))

    assert "unpack to more than 40 MB" in str(refused)


async def test_one_layer_named_often_counts_as_often(site, tmp_path):
    """As the engine would unpack it."""
    layer = Layer.of({"f": bytes(9_000_000)})
    _, refused, _ = await fetch(site, tmp_path, site.whole_image(*[layer] * 5))

    assert "unpack to more than 40 MB" in str(refused)


def sparse_tar():
    """2 kB whose one file is a gigabyte of nothing, as pax describes it (Go's archive/tar writes the zeros out)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("sparse")
        entry.size = 512
        entry.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "big",
            "GNU.sparse.realsize": str(1 << 30),
        }
        tar.addfile(entry, io.BytesIO(b"0\n".ljust(512, b"\x00")))
    return buffer.getvalue()


def many_folders():
    """20,000 empty folders: 10 MB of headers, a block and an inode each on the disk."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(20_000):
            entry = tarfile.TarInfo(f"{number}")
            entry.type = tarfile.DIRTYPE
            tar.addfile(entry)
    return buffer.getvalue()


def with_type(kind):
    tar = bytearray(tar_of({"a": b"x"}))
    tar[156:157] = kind
    tar[148:156] = b" " * 8
    tar[148:156] = f"{sum(tar[:512]):06o}\0 ".encode()
    return bytes(tar)


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        (sparse_tar(), "sparse files"),
        (with_type(b"S"), "sparse files"),
        (with_type(b"Q"), "not known here (81)"),
        (many_folders(), "unpack to more than 40 MB"),
        (b"\xfd7zXZ\x00" + bytes(600), "no tar archive"),
        (b"BZh9" + bytes(600), "no tar archive"),
        (b"x", "cut off"),
        (tar_of({"a": b"x" * 5_000})[:2_000], "cut off"),
    ],
)
async def test_archives_that_the_engine_must_never_see(site, tmp_path, plain, reason):
    _, refused, _ = await fetch(site, tmp_path, site.whole_image(Layer(plain)))

    assert reason in str(refused)
    assert refused.permanent


def pax(records):
    """An extended header block, and its content."""
    lines = b""
    for name, value in records.items():
        body = f" {name}={value}\n".encode()
        length = len(body) + 2 if len(body) + 2 > 9 else len(body) + 1
        lines += str(length).encode() + body
    head = tarfile.TarInfo("pax")
    head.type, head.size = tarfile.XHDTYPE, len(lines)
    return head.tobuf() + lines.ljust(-(-len(lines) // 512) * 512, b"\0")


def file_of(size_bytes, content=b""):
    head = tarfile.TarInfo("f")
    head.size = size_bytes
    return head.tobuf() + content


@pytest.mark.parametrize(
    ("archive", "disk_bytes"),
    [
        # The extended size holds, not the header's.
        (pax({"size": 600}) + file_of(0, bytes(1_024)) + bytes(1_024), 4_096 + 256),
        # Of two extended headers, the last.
        (pax({"size": 10**9}) + pax({"comment": "x"}) + file_of(5, bytes(512)) + bytes(1_024), 4_096 + 256),
        (bytes(1_024) + b"whatever follows the end is not unpacked".ljust(512), 0),
    ],
)  # fmt: skip
def test_sizes_are_read_as_the_engine_reads_them(archive, disk_bytes):
    scan = TarScan()
    scan.feed(archive)
    scan.end()

    assert disk_bytes == scan.disk_bytes


@pytest.mark.parametrize("size", ["1" * 20, "-1", "", "0x5"])
def test_a_size_that_could_be_read_in_two_ways_is_refused(size):
    with pytest.raises(BadTar, match="malformed"):
        TarScan().feed(pax({"size": size}))


@given(
    st.binary(max_size=2_000),
    st.sampled_from([b"", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", pax({"a": "b"})]),
)
def test_any_bytes_are_a_layer_or_one_kind_of_refusal(data, head):
    packed = head + data
    check = LayerCheck(Announced(digest(packed), len(packed), digest(packed)), 10_000)
    with suppress(BadLayer):
        for _ in check.feed(packed):
            pass
        check.end()


async def test_gzip_within_gzip_is_no_archive(site, tmp_path):
    """The engine unpacks once, we unpack once: what remains must be a tar."""
    inner = gzip.compress(tar_of(FILES))
    _, refused, _ = await fetch(
        site, tmp_path, site.whole_image(Layer(gzip.compress(inner), inner))
    )

    assert "no tar archive" in str(refused)


async def test_links_folders_and_long_names_are_honest_archives(site, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind in {"d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE, "n" * 300: tarfile.REGTYPE}.items():  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "t" * 200
            tar.addfile(entry)
    pax = io.BytesIO()
    with tarfile.open(fileobj=pax, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("ü" * 200)
        entry.size, entry.mtime = 3, 1.5
        tar.addfile(entry, io.BytesIO(b"abc"))
    layers = [Layer(buffer.getvalue()), Layer(pax.getvalue()), Layer(bytes(1_024))]
    _, found, _ = await fetch(site, tmp_path, site.whole_image(*layers))

    assert [len(layer.packed) for layer in layers] == [p.unpacked_bytes for p in found.values()]


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"diff_id": "sha256:" + "1" * 64}, "something else than the image's config names"),
        ({"size": 5_000_000}, "breaks off"),
        ({"size": 100}, "more than the manifest says"),
    ],
)
async def test_lies_about_size_and_diff_id(site, tmp_path, lie, reason):
    wanted = site.whole_image(replace(Layer.of(FILES), **lie))
    _, refused, _ = await fetch(site, tmp_path, wanted)

    assert reason in str(refused)


async def test_other_bytes_than_the_digest_names_are_refused(site, tmp_path):
    layer, other = Layer.of(FILES), Layer.of(FILES, lambda tar: gzip.compress(tar, 1))
    wanted = site.whole_image(replace(layer, size=len(other.packed)))
    site.pages[blob_path("a", digest(layer.packed))] = (200, {}, other.packed)
    _, refused, _ = await fetch(site, tmp_path, wanted)

    assert "something else than the digest names" in str(refused)
    assert refused.permanent


async def test_a_layer_that_is_limited_passes_with_the_registrys_words_and_comes_later(
    site, tmp_path
):
    layer = Layer.of(FILES)
    wanted = site.whole_image(layer)
    path = blob_path("a", digest(layer.packed))
    good, limited = site.pages[path], b'{"errors":[{"code":"TOOMANYREQUESTS"}]}'
    site.pages[path] = (429, {}, limited)
    _, refused, _ = await fetch(site, tmp_path, wanted)
    assert "the registry answers 429 (TOOMANYREQUESTS)" == str(refused)
    assert not refused.permanent
    site.pages[path] = good
    _, layers, _ = await fetch(site, tmp_path, wanted)
    assert 1 == len(layers)


async def test_a_registry_that_drips_is_dropped_and_told_so(site, tmp_path):
    layer = Layer.of(FILES)
    wanted = site.whole_image(layer)
    site.pages[blob_path("a", digest(layer.packed))] = Sent(body=layer.packed, drip_s=0.05)
    began = trio.current_time()
    _, refused, made = await fetch(site, tmp_path, wanted)

    assert "the registry is too slow: " in str(refused)
    assert not refused.permanent
    assert 0 < made.got_bytes < 1_000, "what came is kept"
    assert trio.current_time() - began < 10


async def test_one_that_is_just_fast_enough_meets_the_deadline(site, tmp_path):
    layer = Layer.of({"a": bytes(range(256)) * 40}, bytes)
    wanted = site.whole_image(layer)
    site.pages[blob_path("a", digest(layer.packed))] = Sent(body=layer.packed, drip_s=0.005)
    pace = Pace(min_bytes_s=1, window_s=0.5, deadline_s=1)
    _, refused, _ = await fetch(site, tmp_path, wanted, pace=pace)

    assert "the registry is too slow: 0.0 of 0.0 MB in 1 s" == str(refused)
    assert not refused.permanent


async def test_a_drip_that_breaks_off_after_each_byte_is_a_drip(site, tmp_path):
    """New connections do not begin new windows. However quick this machine is, nobody connects 50,000 times a second."""
    layer = Layer.of(FILES, bytes)
    wanted = site.whole_image(layer)
    path = blob_path("a", digest(layer.packed))

    def one_more_byte(headers):
        have = int(headers.get("range", "bytes=0-")[6:-1])
        return Sent(body=layer.packed, cut_at=have + 1)

    site.pages[path] = one_more_byte
    with trio.fail_after(15):
        _, refused, made = await fetch(
            site, tmp_path, wanted, pace=replace(QUICK, min_bytes_s=50_000)
        )

    assert "too slow" in str(refused)
    assert 0 < made.got_bytes < 25_000


async def test_redirects_to_a_store_of_blobs_are_followed_and_to_private_ones_not(
    site, tmp_path, nursery
):
    layer = Layer.of(FILES)
    wanted = site.whole_image(layer)
    path = blob_path("a", digest(layer.packed))
    site.pages["/store"] = Sent(body=layer.packed)
    site.pages[path] = (307, {"Location": "/store"}, b"")
    _, layers, _ = await fetch(site, tmp_path, wanted)
    assert 1 == len(layers)
    (tmp_path / digest(layer.packed)[7:]).unlink()
    site.pages[path] = (307, {"Location": "https://169.254.169.254/latest"}, b"")
    _, refused, _ = await fetch(site, tmp_path, wanted)
    assert "not a public address" in str(refused)


async def test_a_disk_that_takes_nothing_is_our_fault_and_passes(site, tmp_path):
    wanted = site.whole_image(Layer.of(FILES))
    _, refused, _ = await fetch(site, tmp_path / "not-there", wanted)

    assert "cannot be kept here now: No such file or directory" in str(refused)
    assert not refused.permanent


def test_a_layer_of_empty_members_is_bounded():
    packed = gzip.compress(b"") * 250_000
    check = LayerCheck(Announced(digest(packed), len(packed), ""), ROOM_BYTES)
    with pytest.raises(BadLayer, match="too many pieces"):
        for _ in check.feed(packed):
            pass


@pytest.mark.parametrize("step", [1, 7, 511, 512, 513])
def test_any_chunks_give_the_same(step):
    packed = gzip.compress(tar_of({"a": b"hello", "b": bytes(3_000)}))
    check = LayerCheck(
        Announced(digest(packed), len(packed), digest(gzip.decompress(packed))), ROOM_BYTES
    )
    for start in range(0, len(packed), step):
        for _ in check.feed(packed[start : start + step]):
            pass
    check.end()

    assert 3 * 4_096 > check.disk_bytes - 10_240 >= 0
