"""The backup that the parent keeps for us: our identity, sealed with the disk key. Bytes in, bytes out.

Authenticated and encrypted with a key that the parent never sees, numbered, and named by its hash: an old
one, a forged one, or one of another key is told apart before anything in it is believed.
"""

import hashlib
import json
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keycrux_client.shares import DiskKey, Head
from nips.errors import BadInput
from nips.keys import SecretKey

MAGIC = b"enclaved identity 1\n"
SALT_BYTES = 32
MAX_BYTES = 4_096


class BadSeal(BadInput):
    """The backup was not sealed by this key, or was changed since."""


def seal(key: DiskKey, identity: SecretKey, number: int) -> bytes:
    """A new backup; ``number`` must be greater than any before."""
    salt = secrets.token_bytes(SALT_BYTES)
    inside = {"number": number, "secret": identity.reveal_secret().hex()}
    # The salt makes a key that is used once, so the nonce may be constant.
    sealed = _cipher(key, salt).encrypt(bytes(12), json.dumps(inside).encode(), MAGIC + salt)
    return MAGIC + salt + sealed


def unseal_untrusted(key: DiskKey, raw: bytes) -> tuple[SecretKey, Head]:
    """The identity, and the backup's head. Raises `BadSeal`."""
    if not raw.startswith(MAGIC) or len(raw) > MAX_BYTES:
        raise BadSeal("not a sealed identity")
    rest = raw[len(MAGIC) :]
    salt, sealed = rest[:SALT_BYTES], rest[SALT_BYTES:]
    try:
        inside: object = json.loads(_cipher(key, salt).decrypt(bytes(12), sealed, MAGIC + salt))
    except InvalidTag:
        raise BadSeal("the key does not open it") from None
    match inside:
        case {"number": int(number), "secret": str(secret)}:
            return SecretKey.parse(secret), Head(number, digest_of(raw))
        case _:
            raise BadSeal("the sealed identity has another shape")


def digest_of(raw: bytes) -> str:
    """The name of a backup: SHA-256 in hex."""
    return hashlib.sha256(raw).hexdigest()


def _cipher(key: DiskKey, salt: bytes) -> ChaCha20Poly1305:
    derived = HKDF(hashes.SHA256(), 32, salt, b"enclaved sealed identity")
    return ChaCha20Poly1305(derived.derive(key.secret))
