"""A lock names every file that an image is made of; nothing is unpacked that is not in it."""

import json
import stat
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.image import apt, build, ramdisk, wheels
from bot.image.apt import CannotFetch, fetch
from bot.image.cpio import BadCpio, Entry
from bot.image.kernel import _depends, _without_signature
from bot.image.lock import (
    BadLock,
    Lock,
    Package,
    Wheel,
    decode_lock_untrusted,
    encode_lock,
    lock_differences,
)
from bot.image.ramdisk import decode_ramdisk_untrusted, encode_ramdisk
from bot.image.releases import BadReleases, decode_releases_untrusted, why_not_released
from bot.image.root import _is_ours

BASH = Package(
    "bash",
    "5.2.37-2+b9",
    "amd64",
    "debian",
    "pool/main/b/bash/bash_5.2.37-2+b9_amd64.deb",
    4,
    "ab" * 32,
)
WHEEL = Wheel("trio-0.35.0-py3-none-any.whl", "cd" * 32)
KERNEL = replace(BASH, name="linux-image-6.12")
LOCK = Lock(datetime(2026, 11, 27, tzinfo=UTC), "trixie", (BASH,), (KERNEL,), (BASH,), (WHEEL,))
ENTRIES = [
    Entry(b"a", stat.S_IFDIR | 0o755),
    Entry(b"a/b", stat.S_IFREG | 0o644, bytes(range(256)) * 99),
]


def test_a_lock_is_read_as_it_is_written_a_line_for_each():
    text = encode_lock(LOCK)
    assert LOCK == decode_lock_untrusted(text)
    assert 4 == sum('"sha256"' in line for line in text.splitlines())
    there = build.read_lock()
    assert encode_lock(there) == build.LOCK.read_text(), "as `enclaved image lock` writes it"


def test_a_renewal_reads_as_what_it_is():
    newer, other = replace(BASH, version="5.2.38-1"), replace(BASH, name="dash")
    assert ["root: bash 5.2.37-2+b9 → 5.2.38-1"] == [
        *lock_differences(LOCK, replace(LOCK, root=(newer,)))
    ]
    assert ["tools: bash 5.2.37-2+b9 is gone", "tools: dash is new, 5.2.37-2+b9"] == [
        *lock_differences(LOCK, replace(LOCK, tools=(other,)))
    ]


BAD = {
    "name": ("", "Bash", "../bash", 1),
    "version": ("", "1 2", "1;2"),
    "arch": ("arm64", ""),
    "archive": ("ubuntu",),
    "path": (
        "/etc/passwd",
        "pool/main/../../x/y.deb",
        "pool/main/b/bash/",
        "http://x/y",
        "pool/contrib/b/bash/x.deb",
    ),
    "size": (0, -1, 1 << 40, "4", True),
    "sha256": ("", "AB" * 32, "ab" * 31),
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD.items() for v in values])
def test_a_lock_that_we_would_not_write_is_refused(field, value):
    told = json.loads(encode_lock(LOCK))
    told["root"][0][field] = value
    with pytest.raises(BadLock):
        decode_lock_untrusted(json.dumps(told))


@pytest.mark.parametrize("change", [
    lambda t: t.pop("root"), lambda t: t.update(more=[]), lambda t: t.update(time="yesterday"), lambda t: t.update(root=[]),
    lambda t: t.update(wheels=[{"file": "x.tar.gz", "sha256": "ab" * 32}]), lambda t: t["root"][0].pop("size"),
    lambda t: t["root"][0].update(more=1), lambda t: t.update(root=[[]]), lambda t: t.update(root={}), lambda t: t.update(time=1),
    lambda t: t.update(suite="../x"), lambda t: t.update(suite="trixie main\ndeb http://127.0.0.1 x"), lambda t: t.update(suite="--setup-hook=id"),
    lambda t: t.update(time="9999-01-01T00:00:00Z"), lambda t: t["root"].append(t["root"][0]), lambda t: t["tools"].append(t["kernel"][0]),
    lambda t: t["wheels"].append(t["wheels"][0]),
])  # fmt: skip
def test_a_lock_of_another_shape_is_refused(change):
    told = json.loads(encode_lock(LOCK))
    change(told)
    with pytest.raises(BadLock):
        decode_lock_untrusted(json.dumps(told))


@given(
    st.text(max_size=200)
    | st.recursive(
        st.none() | st.text(max_size=9),
        lambda s: st.lists(s) | st.dictionaries(st.text(max_size=9), s),
    ).map(json.dumps)
)
def test_any_text_is_no_lock(text):
    with pytest.raises(BadLock):
        decode_lock_untrusted(text)


def test_a_file_with_another_hash_stops_it_before_anything_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(
        apt, "mirrors", lambda: {"debian": "http://127.0.0.1:9", "debian-security": ""}
    )
    monkeypatch.setattr(apt, "SNAPSHOT", "http://127.0.0.1:9")
    with pytest.raises(CannotFetch, match=r"bash_.*renew the lock"):
        fetch(LOCK, [BASH], tmp_path)
    (tmp_path / BASH.file).write_bytes(b"evil")
    with pytest.raises(BadLock, match="does not have the hash"):
        fetch(LOCK, [BASH], tmp_path)
    assert not (tmp_path / BASH.file).exists(), "it is fetched anew the next time"
    (tmp_path / WHEEL.file).write_bytes(b"evil")
    with pytest.raises(BadLock, match="does not have the hash"):
        wheels.fetch_wheels(LOCK, tmp_path)


# -- ramdisks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_a_ramdisk_is_read_as_it_is_written_and_ends_where_the_next_one_may_begin(packed):
    raw = encode_ramdisk(ENTRIES, 1_700_000_000, packed=packed)
    assert 0 == len(raw) % 4
    assert raw == encode_ramdisk(reversed(ENTRIES), 1_700_000_000, packed=packed)
    assert tuple(ENTRIES) == decode_ramdisk_untrusted(raw)
    assert (len(raw) < 3_000) is packed


@given(st.data())
@settings(max_examples=200)
def test_a_packed_ramdisk_with_anything_changed_or_cut_is_other_files_or_refused(data):
    raw = bytearray(encode_ramdisk(ENTRIES, 0, packed=True))
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(4, len(raw) - 4))]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert isinstance(decode_ramdisk_untrusted(bytes(raw)), tuple)
    except BadCpio:
        pass


def test_what_unpacks_without_end_or_goes_on_after_its_end_is_refused(monkeypatch):
    monkeypatch.setattr(ramdisk, "MOST_UNPACKED_BYTES", 1 << 22)
    with pytest.raises(BadCpio, match="more than"):
        decode_ramdisk_untrusted(zstd.compress(bytes(1 << 24)))
    raw = encode_ramdisk(ENTRIES, 0, packed=True)
    for more in (bytes(4), b"\1", raw):
        with pytest.raises(BadCpio, match="something follows"):
            decode_ramdisk_untrusted(raw + more)
    with pytest.raises(BadCpio, match="is cut"):
        decode_ramdisk_untrusted(raw[:50])


# -- releases ------------------------------------------------------------------------------------------------

PCRS = {0: b"\1" * 48, 1: b"\2" * 48, 2: b"\3" * 48}


def released(**changes):
    entry = {"version": "1.2.3", **{f"PCR{index}": pcr.hex() for index, pcr in PCRS.items()}}
    return json.dumps({"releases": [entry | changes]})


def test_a_released_version_stays_what_it_is_and_one_of_development_is_free():
    releases = decode_releases_untrusted(released())
    assert None is why_not_released("1.2.3", PCRS, releases)
    assert None is why_not_released("1.2.4-dev", {}, releases)
    assert "PCR2" in why_not_released("1.2.3", PCRS | {2: bytes(48)}, releases)
    assert "PCR0, PCR1" in why_not_released("1.2.3", PCRS | {0: bytes(48), 1: bytes(48)}, releases)
    assert "no release yet" in why_not_released("1.2.4", PCRS, releases)


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"releases": {}}', '{"releases": [], "more": 1}', '{"releases": [1]}', released(version="1.2"), released(version=1),
    released(PCR0="ab"), released(PCR1="AB" * 48), released(PCR2=None), released(PCR3="ab" * 48),
])  # fmt: skip
def test_a_list_of_releases_of_another_shape_is_refused(text):
    with pytest.raises(BadReleases):
        decode_releases_untrusted(text)


# -- modules --------------------------------------------------------------------------------------------------


def test_a_modules_signature_is_cut_off_and_nothing_else():
    module = b"\x7fELF" + bytes(90)
    signature = b"s" * 77
    footer = bytes(8) + len(signature).to_bytes(4, "big") + b"~Module signature appended~\n"
    assert module == _without_signature(module + signature + footer)
    assert module == _without_signature(module)
    assert ["nf_tables", "libcrc32c"] == _depends(b"x\0depends=nf_tables,libcrc32c\0y")
    assert [] == _depends(b"x\0depends=\0y")


# -- what goes into an image ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "is_ours"), [
    ("bot/server/app.py", True), ("bot/release.json", True), ("bot/adapters/store/migrations/0001_initial.sql", True),
    ("bot/me.key", False), ("bot/other.json", False), ("bot/server/app.py~", False), ("bot/devstack/nsm.py", False),
    ("bot/__pycache__/app.cpython-311.pyc", False),
])  # fmt: skip
def test_only_code_gets_into_an_image_whatever_else_lies_in_the_checkout(path, is_ours):
    assert is_ours is _is_ours(path)


def test_another_packer_than_the_locks_is_refused(monkeypatch):
    lock = build.read_lock()
    build._check_packer(lock)
    monkeypatch.setattr(build.metadata, "version", lambda _: "1.7.0")
    with pytest.raises(BadLock, match=r"1\.7\.0 here"):
        build._check_packer(lock)
