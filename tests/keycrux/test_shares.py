"""What services keep: whole copies or shares, and what comes of them together."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keycrux_client.protocol import MAX_DATA
from keycrux_client.shares import (
    BadStored,
    DiskKey,
    Head,
    decode_untrusted,
    encode,
    gather,
    split,
    threshold_for,
)

HEAD = Head(2**53 - 1, "ab" * 32)
keys = st.binary(min_size=32, max_size=32).map(DiskKey)


@settings(max_examples=15)
@given(keys, st.integers(1, 7), st.data())
def test_enough_yield_the_key_and_fewer_yield_nothing(key, services, data):
    parts = [decode_untrusted(text) for text in split(key, HEAD, services)]
    needed = threshold_for(services)
    chosen = data.draw(st.permutations(parts))
    assert [key] == [g.key for g in gather(chosen[:needed])]
    assert [] == gather(chosen[: needed - 1])


@pytest.mark.parametrize("services", [3, 5, 16])
def test_a_share_tells_nothing_of_the_key_and_fits(services):
    key = DiskKey(bytes(range(32)))
    texts = split(key, HEAD, services)
    assert services == len(set(texts))
    for text in texts:
        assert len(text) < MAX_DATA
        assert key.secret.hex() not in text
        assert decode_untrusted(text).threshold == services // 2 + 1


@pytest.mark.parametrize("services", [0, 17])
def test_too_few_or_too_many_services(services):
    with pytest.raises(ValueError, match="1 to 16"):
        split(DiskKey.generate(), HEAD, services)


def test_with_one_or_two_services_each_has_a_whole_copy():
    key = DiskKey.generate()
    for services in (1, 2):
        for text in split(key, HEAD, services):
            (found,) = gather([decode_untrusted(text)])
            assert (key, HEAD) == (found.key, found.head)


def test_the_newest_head_comes_first():
    key, other = DiskKey.generate(), DiskKey.generate()
    texts = [
        *split(key, Head(3, "a"), 1),
        *split(key, Head(5, "a"), 1),
        *split(other, Head(4, "a"), 1),
    ]
    first, second = gather([decode_untrusted(text) for text in texts])
    assert (key, 5, other, 4) == (first.key, first.head.number, second.key, second.head.number)


def test_secrets_cannot_be_printed():
    key = DiskKey.generate()
    (text,) = split(key, HEAD, 1)
    stored = decode_untrusted(text)
    for shown in (repr(key), repr(stored), repr(gather([stored])), str(key)):
        assert key.secret.hex() not in shown
    with pytest.raises(BadStored) as caught:
        decode_untrusted(text.replace('"k":1', '"k":99'))
    assert key.secret.hex() not in str(caught.value)
    with pytest.raises(ValueError, match="32 bytes"):
        DiskKey(b"short")


@given(st.text(max_size=200))
def test_any_text(text):
    try:
        decode_untrusted(text)
    except BadStored:
        pass


json_values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.lists(st.integers(), max_size=2)
)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["v", "n", "hash", "k", "set", "key", "share"]), json_values
        ),
        max_size=4,
    )
)
def test_any_values_together(values):
    import json

    good = [decode_untrusted(text) for text in split(DiskKey(b"k" * 32), HEAD, 3)]
    for value in values:
        try:
            good.append(decode_untrusted(json.dumps({"v": 1, **value})))
        except BadStored:
            continue
    assert DiskKey(b"k" * 32) in [g.key for g in gather(good)]


def test_what_is_encoded_reads_back():
    for text in split(DiskKey.generate(), HEAD, 3):
        assert text == encode(decode_untrusted(text))
