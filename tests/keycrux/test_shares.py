"""What services keep: whole copies or shares, and what comes of them together."""

from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keycrux_client.protocol import MAX_DATA
from keycrux_client.shares import (
    MEMBERS,
    BadStored,
    DiskKey,
    Fence,
    Head,
    decode_untrusted,
    encode,
    fitting_split,
    gather,
    make_split,
    threshold_for,
    to_store,
)
from tests.escrow import texts

KEY, OTHER = DiskKey(bytes(range(32))), DiskKey(b"o" * 32)
FENCE = Fence(1, "ab" * 8)
HEAD = Head(1, 2**53 - 1, "ab" * 32)
keys = st.binary(min_size=32, max_size=32).map(DiskKey)


@settings(max_examples=15)
@given(keys, st.integers(1, 7), st.data())
def test_enough_yield_the_key_and_fewer_yield_nothing(key, services, data):
    parts = [decode_untrusted(text) for text in texts(key, HEAD, services)]
    needed = threshold_for(services)
    chosen = data.draw(st.permutations(parts))
    assert [(key, HEAD)] == [(g.key, g.newest) for g in gather(chosen[:needed])]
    assert [] == gather(chosen[: needed - 1])


@pytest.mark.parametrize("services", [3, 5, 16, 40])
def test_a_share_tells_nothing_of_the_key_and_fits(services):
    split = make_split(KEY, services)
    needed = min(services, MEMBERS) // 2 + 1
    assert 2 * needed - 1 == len(set(split.parts)), "any two majorities have one in common"
    for index in range(len(split.parts)):
        text = encode(to_store(KEY, [split.part(index)], HEAD, FENCE))
        assert len(text) < MAX_DATA
        assert KEY.secret.hex() not in text
        assert needed == decode_untrusted(text).parts[0].threshold


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
@settings(max_examples=25, deadline=None)
def test_a_value_with_parts_of_two_keys_fits_and_yields_both(one, other):
    keys = [DiskKey(one), DiskKey(other)]
    splits = [make_split(key, 3) for key in keys]
    head = Head(2**53 - 1, 2**53 - 1, "ab" * 32)
    fence = Fence(2**53 - 1, "ab" * 8)
    values = [to_store(keys[0], [s.part(n) for s in splits], head, fence) for n in range(2)]
    assert all(len(encode(value)) <= MAX_DATA for value in values)
    newest = {
        found.key: found.newest for found in gather([*map(decode_untrusted, map(encode, values))])
    }
    assert newest == {keys[1]: None} | {keys[0]: head}


@pytest.mark.parametrize(
    ("had", "answering", "holding", "gets"),
    [
        (2, 2, 2, None), (2, 3, 3, 3), (3, 3, 3, None), (3, 4, 3, None), (3, 5, 3, 5), (5, 3, 5, None),
        (5, 3, 3, 3), (5, 4, 4, None), (5, 2, 2, None), (3, 1, 1, None), (15, 40, 15, None), (3, 40, 3, 15),
    ],
)  # fmt: skip
def test_a_split_follows_its_members(had, answering, holding, gets):
    """It grows when all new parts find somebody, shrinks when the lost ones forgot theirs, and never to whole copies."""
    found = fitting_split(make_split(KEY, had), KEY, answering, holding)
    assert gets == (len(found.parts) if found is not None else None)


def test_with_one_or_two_services_each_has_a_whole_copy():
    for services in (1, 2):
        for text in texts(KEY, HEAD, services):
            (found,) = gather([decode_untrusted(text)])
            assert (KEY, HEAD) == (found.key, found.newest)


@pytest.mark.parametrize("services", range(3, 18))
def test_of_any_two_groups_that_yield_the_key_somebody_is_in_both(services):
    split = make_split(KEY, services)
    assert 2 * split.threshold > len(split.parts)
    assert len(split.parts) >= min(services, MEMBERS)


def test_the_epoch_counts_before_the_number():
    first, second = Head(1, 100, "a"), Head(2, 7, "b")
    assert first.is_behind(second)
    assert not second.is_behind(first)
    assert not first.is_behind(Head(1, 100, "z")), "beside it, not behind it"


def test_what_was_written_with_the_key_shows_it_alone_and_whole():
    split = make_split(KEY, 3)
    value = to_store(KEY, [split.part(2)], HEAD, FENCE)
    assert value.is_authentic(KEY)
    assert not value.is_authentic(OTHER)
    for changed in (
        replace(value, head=Head(1, 1, HEAD.digest)), replace(value, head=Head(1, HEAD.number, "00")),
        replace(value, head=Head(2, HEAD.number, HEAD.digest)),
        replace(value, fence=Fence(2, FENCE.writer)), replace(value, fence=Fence(1, "cd")), replace(value, parts=()),
        *(replace(value, parts=(replace(value.parts[0], **{name: other}),)) for name, other in (
            ("threshold", 3), ("set_id", "x"), ("index", 1), ("secret", split.parts[1]))),
        replace(value, parts=value.parts * 2), replace(value, mac=""), replace(value, mac="é"),
    ):  # fmt: skip
        assert not changed.is_authentic(KEY)


def test_the_newest_authentic_head_counts():
    split = make_split(KEY, 1)
    values = [to_store(KEY, [split.part(0)], Head(1, n, "a"), FENCE) for n in (3, 5, 4)]
    forged = replace(values[0], head=Head(1, 99, "z"))
    (found,) = gather([*values, forged])
    assert Head(1, 5, "a") == found.newest
    (alone,) = gather([forged])
    assert alone.newest is None


def test_secrets_cannot_be_printed():
    (text,) = texts(KEY, HEAD, 1)
    stored = decode_untrusted(text)
    for shown in (
        repr(KEY),
        repr(stored),
        repr(gather([stored])),
        str(KEY),
        repr(make_split(KEY, 1)),
    ):
        assert KEY.secret.hex() not in shown
    with pytest.raises(BadStored) as caught:
        decode_untrusted(text.replace('"parts":[[1', '"parts":[[99'))
    assert KEY.secret.hex() not in str(caught.value)
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
    | st.integers(-5, 2**60)
    | st.text(max_size=20)
    | st.lists(st.integers(0, 9), max_size=2)
)
names = st.sampled_from(["v", "fence", "by", "e", "n", "hash", "parts", "mac"])


@given(st.lists(st.dictionaries(names, json_values), max_size=4))
def test_any_values_together(values):
    good = [decode_untrusted(text) for text in texts(KEY, HEAD, 3)]
    base = orjson.loads(encode(good[0]))
    for value in values:
        try:
            good.append(decode_untrusted(orjson.dumps(base | value).decode()))
        except (BadStored, orjson.JSONEncodeError):
            continue
    assert KEY in [g.key for g in gather(good)]


def test_what_is_encoded_reads_back():
    for text in texts(DiskKey.generate(), HEAD, 3):
        assert text == encode(decode_untrusted(text))
