"""The backup that the parent keeps for us: our identity, sealed with the disk key. Bytes in, bytes out.

How the key is shared among escrow services is sealed with it: the shares stay the same for the key's life.

Authenticated and encrypted with a key that the parent never sees, numbered, and named by its hash: an old
one, a forged one, or one of another key is told apart before anything in it is believed.
"""

import hashlib
import secrets
from dataclasses import dataclass

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keycrux_client.shares import DiskKey, Head, Split
from nips.errors import BadInput
from nips.keys import SecretKey

MAGIC = b"enclaved identity 1\n"
SALT_BYTES = 32
MAX_BYTES = 16_384


class BadSeal(BadInput):
    """The backup was not sealed by this key, or was changed since."""


@dataclass(frozen=True)
class Sealed:
    """What is inside. ``number`` is greater with every backup."""

    identity: SecretKey
    split: Split
    number: int


def seal(key: DiskKey, inside: Sealed) -> bytes:
    """A new backup."""
    salt = secrets.token_bytes(SALT_BYTES)
    text = orjson.dumps(
        {
            "number": inside.number,
            "secret": inside.identity.reveal_secret().hex(),
            "set": inside.split.set_id,
            "k": inside.split.threshold,
            "parts": inside.split.parts,
        }
    )
    # The salt makes a key that is used once, so the nonce may be constant.
    return MAGIC + salt + _cipher(key, salt).encrypt(bytes(12), text, MAGIC + salt)


def unseal_untrusted(key: DiskKey, raw: bytes) -> tuple[Sealed, Head]:
    """What is inside, and the backup's head. Raises `BadSeal`."""
    if not raw.startswith(MAGIC) or len(raw) > MAX_BYTES:
        raise BadSeal("not a sealed identity")
    rest = raw[len(MAGIC) :]
    salt, sealed = rest[:SALT_BYTES], rest[SALT_BYTES:]
    try:
        text = _cipher(key, salt).decrypt(bytes(12), sealed, MAGIC + salt)
    except InvalidTag:
        raise BadSeal("the key does not open it") from None
    match orjson.loads(text):
        case {
            "number": int(number), "secret": str(secret), "set": str(set_id), "k": int(k),
            "parts": list(parts),
        }:  # fmt: skip
            split = Split(set_id, k, tuple(map(str, parts)))
            inside = Sealed(SecretKey.parse(secret), split, number)
            return inside, Head(number, digest_of(raw))
        case _:
            raise BadSeal("the sealed identity has another shape")


def digest_of(raw: bytes) -> str:
    """The name of a backup: SHA-256 in hex."""
    return hashlib.sha256(raw).hexdigest()


def _cipher(key: DiskKey, salt: bytes) -> ChaCha20Poly1305:
    derived = HKDF(hashes.SHA256(), 32, salt, b"enclaved sealed identity")
    return ChaCha20Poly1305(derived.derive(key.secret))
