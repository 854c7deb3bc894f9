"""Our strict CBOR against a general library, and what only a strict reader refuses."""

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nips.errors import BadCbor
from nips.tee import cbor

numbers = st.integers(min_value=-(2**64), max_value=2**64 - 1)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.binary(max_size=40) | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(numbers.filter(lambda n: n > 1) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=6,
)


def depth(value):
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, inner), default=0)
    return 0


@given(values.filter(lambda v: depth(v) <= cbor.MAX_DEPTH))
def test_both_read_what_we_write_and_we_read_what_the_other_writes(value):
    assert value == cbor.decode_untrusted(cbor.encode(value))
    assert value == cbor2.loads(cbor.encode(value))
    assert value == cbor.decode_untrusted(cbor2.dumps(value))
    assert cbor2.dumps(value) == cbor.encode(value)


@given(st.binary(max_size=200))
def test_any_bytes_raise_one_exception_or_read_as_the_other_reads_them(raw):
    try:
        value = cbor.decode_untrusted(raw)
    except BadCbor:
        return
    assert value == cbor2.loads(raw)


@given(values.filter(lambda v: depth(v) <= 4), st.data())
def test_every_cut_and_every_byte_more_is_refused(value, data):
    raw = cbor.encode([value])
    cut = data.draw(st.integers(0, len(raw) - 1))
    for broken in (raw[:cut], raw + b"\x00", raw + raw):
        with pytest.raises(BadCbor):
            cbor.decode_untrusted(broken)


@pytest.mark.parametrize(
    ("hex_text", "value"),
    [
        ("bf6161016162 02ff", {"a": 1, "b": 2}),
        ("9f0102ff", [1, 2]),
        ("bfff", {}),
        ("9fff", []),
        ("9f9fff80bfffff", [[], [], {}]),
    ],
)
def test_maps_and_arrays_may_be_of_indefinite_length(hex_text, value):
    assert value == cbor.decode_untrusted(bytes.fromhex(hex_text))


@pytest.mark.parametrize(
    ("hex_text", "why"),
    [
        ("", "ends too early"),
        ("a2616101616102", "stands twice"),
        ("bf616101616102ff", "stands twice"),
        ("a2010101 02", "stands twice"),
        ("a1f501", "neither integer nor text"),
        ("a14101 01", "neither integer nor text"),
        ("a18001", "neither integer nor text"),
        ("a2f5010101", "neither integer nor text"),
        ("5f4101ff", "indefinite length"),
        ("7f6161ff", "indefinite length"),
        ("1f", "indefinite length"),
        ("3f", "indefinite length"),
        ("ff", "a float, or a simple"),
        ("9f01", "ends too early"),
        ("bf6161ff", "a float, or a simple"),
        ("d2 80", "a tag"),
        ("c074", "a tag"),
        ("d9d9f780", "a tag"),
        ("f97e00", "a float, or a simple"),
        ("fb7ff8000000000000", "a float, or a simple"),
        ("f7", "a float, or a simple"),
        ("f820", "a float, or a simple"),
        ("1801", "not the shortest"),
        ("190001", "not the shortest"),
        ("1a00000001", "not the shortest"),
        ("1b0000000000000001", "not the shortest"),
        ("5801 00", "not the shortest"),
        ("1c", "reserved"),
        ("5bffffffffffffffff", "ends too early"),
        ("9bffffffffffffffff", "ends too early"),
        ("bbffffffffffffffff", "ends too early"),
        ("62c328", "not UTF-8"),
        ("8181818181818180", "too deep"),
        ("81" * 5_000 + "80", "too deep"),
    ],
)  # fmt: skip
def test_what_a_strict_reader_refuses(hex_text, why):
    with pytest.raises(BadCbor, match=why):
        cbor.decode_untrusted(bytes.fromhex(hex_text))


@pytest.mark.parametrize("value", [1.0, object(), {1, 2}])
def test_what_cannot_be_written(value):
    with pytest.raises(TypeError):
        cbor.encode(value)
