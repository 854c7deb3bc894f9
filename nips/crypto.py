"""secp256k1 for Nostr: BIP-340 signatures and ECDH. The only module that touches libsecp256k1.

The binding checks its arguments by ``assert``, which ``python -O`` removes, and libsecp256k1 reads
32 or 64 bytes from whatever pointer it is given. So every length is checked here, before the call.
"""

import secrets
from functools import lru_cache

import secp256k1 as _s

from nips.errors import BadCiphertext, BadKey

_ffi, _lib, _ctx = _s.ffi, _s.lib, _s.secp256k1_ctx


def generate_secret() -> bytes:
    """32 bytes from the operating system that are a valid secret key."""
    while True:
        secret = secrets.token_bytes(32)
        if is_valid_secret(secret):
            return secret


def is_valid_secret(secret: bytes) -> bool:
    """True for 32 bytes that encode a scalar in [1, n)."""
    return len(secret) == 32 and _lib.secp256k1_ec_seckey_verify(_ctx, secret) == 1


def keypair(secret: bytes) -> tuple[object, str]:
    """An opaque handle for `schnorr_sign`, and the x-only public key in hex. Raises `BadKey`."""
    if not is_valid_secret(secret):
        raise BadKey("not a secp256k1 secret key")
    private = _s.PrivateKey(secret, raw=True)
    return private.keypair, private.pubkey.serialize()[1:].hex()


def schnorr_sign(handle: object, digest: bytes) -> bytes:
    """A 64-byte BIP-340 signature over a 32-byte digest, with fresh auxiliary randomness."""
    if len(digest) != 32:
        raise ValueError("digest must be 32 bytes")
    signature = _ffi.new("unsigned char [64]")
    if (
        _lib.secp256k1_schnorrsig_sign(_ctx, signature, digest, handle, secrets.token_bytes(32))
        != 1
    ):
        raise RuntimeError("libsecp256k1 could not sign")
    return bytes(_ffi.buffer(signature, 64))


def schnorr_verify(pubkey: str, digest: bytes, signature: bytes) -> bool:
    """Whether `signature` over `digest` is by `pubkey` (x-only, hex). False for malformed input."""
    if len(digest) != 32 or len(signature) != 64:
        return False
    try:
        point = _xonly(pubkey)
    except BadKey:
        return False
    return bool(_lib.secp256k1_schnorrsig_verify(_ctx, signature, digest, 32, point) == 1)


def is_pubkey(text: str) -> bool:
    """True for 64 lower-case hex digits that are the x of a point on the curve."""
    try:
        _xonly(text)
    except BadKey:
        return False
    return True


def ecdh_x(secret: bytes, pubkey: str) -> bytes:
    """The unhashed x coordinate of the shared point (NIP-04, NIP-44). Raises `BadCiphertext`."""
    if not is_valid_secret(secret):
        raise BadCiphertext("not a secret key")
    point = _ffi.new("secp256k1_pubkey *")
    if _lib.secp256k1_ec_pubkey_parse(_ctx, point, b"\x02" + _hex32(pubkey), 33) != 1:
        raise BadCiphertext("not a point on the curve")
    out = _ffi.new("unsigned char [32]")
    if _lib.secp256k1_ecdh(_ctx, out, point, secret, _copy_x, _ffi.NULL) != 1:
        raise BadCiphertext("no shared secret")
    return bytes(_ffi.buffer(out, 32))


@lru_cache(maxsize=4096)
def _xonly(pubkey: str) -> object:
    point = _ffi.new("secp256k1_xonly_pubkey *")
    if _lib.secp256k1_xonly_pubkey_parse(_ctx, point, _hex32(pubkey)) != 1:
        raise BadKey("not a point on the curve")
    return point


def _hex32(text: str) -> bytes:
    # bytes.fromhex takes upper case and spaces; NIP-01 wants 64 lower-case digits and nothing else.
    if len(text) != 64 or not _LOWER_HEX.issuperset(text):
        raise BadKey("a public key is 64 lower-case hex digits")
    return bytes.fromhex(text)


_LOWER_HEX = frozenset("0123456789abcdef")


def _copy_x_python(out: object, x: object, _y: object, _data: object) -> int:
    _ffi.memmove(out, x, 32)
    return 1


_copy_x = _ffi.callback(
    "int(unsigned char *, const unsigned char *, const unsigned char *, void *)", _copy_x_python
)
