"""Manifests and indexes as bytes: whole, cut, changed, and as nobody of ours would write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.checkpoint.manifest import (
    CHUNK_BYTES,
    MAX_CHUNKS,
    Entry,
    Manifest,
    Ref,
    decode_index_untrusted,
    decode_manifest_untrusted,
    encode_index,
    encode_manifest,
)
from bot.checkpoint.seal import MAGIC, BadCheckpoint, Sealer
from keycrux_client.shares import DiskKey

KEY = DiskKey(bytes(range(32)))
packs = st.binary(min_size=16, max_size=16)
ids = st.binary(min_size=32, max_size=32)
refs = st.builds(Ref, packs, st.integers(0, 2**32 - 1), st.integers(1, CHUNK_BYTES), ids)
entries = st.lists(
    st.builds(Entry, st.text(min_size=1, max_size=40), st.integers(0, CHUNK_BYTES * MAX_CHUNKS), refs, st.binary(max_size=50)),
    max_size=4, unique_by=lambda entry: entry.name,
)  # fmt: skip
manifests = st.builds(
    Manifest, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), ids, st.integers(0, 2**64 - 1),
    entries.map(tuple), st.dictionaries(packs, st.integers(0, 2**24), max_size=3), st.binary(max_size=50),
)  # fmt: skip


@given(manifests)
def test_a_manifest_comes_back_as_it_was(manifest):
    assert manifest == decode_manifest_untrusted(encode_manifest(manifest))


@given(manifests, st.data())
def test_a_manifest_that_is_cut_or_followed_by_something_is_none(manifest, data):
    raw = encode_manifest(manifest)
    with pytest.raises(BadCheckpoint):
        decode_manifest_untrusted(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(BadCheckpoint):
        decode_manifest_untrusted(raw + b"\0")


@given(st.binary(max_size=300))
def test_any_bytes(raw):
    """Only ever one exception, whatever comes."""
    for decode in (decode_manifest_untrusted, Sealer(KEY).open_manifest_untrusted,
                   lambda raw: decode_index_untrusted(raw, 10**6)):  # fmt: skip
        try:
            decode(raw)
        except BadCheckpoint:
            pass


@given(st.dictionaries(st.integers(0, MAX_CHUNKS - 1), refs, max_size=20))
def test_an_index_comes_back_as_it_was(index):
    assert index == decode_index_untrusted(encode_index(index), CHUNK_BYTES * MAX_CHUNKS)


def test_an_index_reaches_nowhere_beyond_its_file():
    ref = Ref(b"p" * 16, 0, 100, b"i" * 32)
    raw = encode_index({1: ref})
    assert {1: ref} == decode_index_untrusted(raw, CHUNK_BYTES + 100)
    for size in (0, CHUNK_BYTES, CHUNK_BYTES + 99):
        with pytest.raises(BadCheckpoint, match="beyond its file"):
            decode_index_untrusted(raw, size)


def test_bounds_hold_on_both_sides():
    manifest = Manifest(1, 1, bytes(32), 0, (), {}, bytes(65_536))
    assert manifest == decode_manifest_untrusted(encode_manifest(manifest))
    with pytest.raises(ValueError, match="too much"):
        encode_manifest(Manifest(1, 1, bytes(32), 0, (), {}, bytes(65_537)))
    twice = (Entry("a", 1, Ref(b"p" * 16, 0, 1, b"i" * 32)),) * 2
    with pytest.raises(BadCheckpoint, match="names a file twice"):
        decode_manifest_untrusted(encode_manifest(Manifest(1, 1, bytes(32), 0, twice, {})))


def test_a_sealed_manifest_opens_with_its_key_alone_and_changed_in_no_bit():
    raw = Sealer(KEY).seal_manifest(b"body")
    assert b"body" == Sealer(KEY).open_manifest_untrusted(raw)
    with pytest.raises(BadCheckpoint, match="does not open"):
        Sealer(DiskKey(b"o" * 32)).open_manifest_untrusted(raw)
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(BadCheckpoint):
            Sealer(KEY).open_manifest_untrusted(changed)
    assert raw.startswith(MAGIC)
    assert raw != Sealer(KEY).seal_manifest(b"body"), "each under a key of its own"


def test_a_secret_cannot_be_printed():
    assert "hush" not in repr(Manifest(1, 1, bytes(32), 0, (), {}, b"hush"))
    assert KEY.secret.hex() not in repr(Sealer(KEY))
