"""The backup that the parent keeps: only its key opens it, and every byte of it counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.boot.sealed import MAX_BYTES, BadSeal, Sealed, digest_of, seal, unseal_untrusted
from keycrux_client.shares import DiskKey, Head, make_split
from nips.keys import SecretKey

KEY, IDENTITY = DiskKey(b"k" * 32), SecretKey.generate()
INSIDE = Sealed(IDENTITY, make_split(KEY, 3), 7)
SEALED = seal(KEY, INSIDE)


def test_what_is_sealed_opens_with_its_key_and_tells_its_head():
    assert (INSIDE, Head(7, digest_of(SEALED))) == unseal_untrusted(KEY, SEALED)
    assert len(SEALED) < MAX_BYTES
    assert IDENTITY.reveal_secret() not in SEALED
    assert IDENTITY.reveal_secret().hex().encode() not in SEALED
    assert seal(KEY, INSIDE) != SEALED


def test_every_byte_counts_and_no_other_key_opens_it():
    for index in range(len(SEALED)):
        changed = bytearray(SEALED)
        changed[index] ^= 1
        with pytest.raises(BadSeal):
            unseal_untrusted(KEY, bytes(changed))
    for raw in (b"", SEALED[:-1], SEALED + b"\0", SEALED * 100):
        with pytest.raises(BadSeal):
            unseal_untrusted(KEY, raw)
    with pytest.raises(BadSeal, match="does not open"):
        unseal_untrusted(DiskKey(b"o" * 32), SEALED)


@given(st.binary(max_size=200))
def test_any_bytes(raw):
    for candidate in (raw, SEALED[:20] + raw):
        with pytest.raises(BadSeal):
            unseal_untrusted(KEY, candidate)
