"""Everything that leaves the enclave is sealed here. Bytes in, bytes out.

Keys come from the disk key by HKDF-SHA256, one for each use. A pack has a key of its own, made from its random name,
so that the place inside the pack may be the nonce: no nonce is ever used twice with one key, even over many lives.
A chunk is bound to its name, so that one chunk cannot stand in for another.
"""

import hashlib
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keycrux_client.shares import DiskKey
from nips.errors import BadInput

MAGIC = b"enclaved state 1"
SALT_BYTES, NAME_BYTES, ID_BYTES, TAG_BYTES = 32, 16, 32, 16
_BLOCK_BYTES = 64


class BadCheckpoint(BadInput):
    """The keeper handed over something that was not sealed with our key, or not as this."""


class Sealer:
    """One disk key at work. Cannot be printed."""

    def __init__(self, key: DiskKey) -> None:
        self.key = key
        # A whole block of SHA-256 that nobody else knows: ids tell nothing to who does not have it.
        self._named = hashlib.sha256(self._derive(b"", b"chunk ids", _BLOCK_BYTES))

    def id_of(self, chunk: bytes | memoryview) -> bytes:
        """The name of these bytes: equal bytes have equal names, under this key alone."""
        named = self._named.copy()
        named.update(chunk)
        return named.digest()

    def cipher_of(self, pack: bytes) -> "PackCipher":
        """For the pack of that name."""
        return PackCipher(AESGCM(self._derive(pack, b"pack", 32)))

    def seal_manifest(self, body: bytes) -> bytes:
        """Under a salt of its own, which makes a key that is used once."""
        salt = secrets.token_bytes(SALT_BYTES)
        cipher = AESGCM(self._derive(salt, b"manifest", 32))
        return MAGIC + salt + cipher.encrypt(bytes(12), body, MAGIC + salt)

    def open_manifest_untrusted(self, raw: bytes) -> bytes:
        """Raises `BadCheckpoint`."""
        salt = raw[len(MAGIC) : len(MAGIC) + SALT_BYTES]
        if not raw.startswith(MAGIC) or len(salt) != SALT_BYTES:
            raise BadCheckpoint("not a manifest")
        cipher = AESGCM(self._derive(salt, b"manifest", 32))
        try:
            return cipher.decrypt(bytes(12), raw[len(MAGIC) + SALT_BYTES :], MAGIC + salt)
        except InvalidTag:
            raise BadCheckpoint("the key does not open the manifest") from None

    def _derive(self, salt: bytes, purpose: bytes, length: int) -> bytes:
        info = b"enclaved checkpoint " + purpose
        return HKDF(hashes.SHA256(), length, salt or None, info).derive(self.key.secret)


class PackCipher:
    """Seals and opens the chunks of one pack, each at its offset."""

    def __init__(self, cipher: AESGCM) -> None:
        self._cipher = cipher

    def seal(self, offset: int, chunk_id: bytes, chunk: bytes | memoryview) -> bytes:
        """`TAG_BYTES` longer than the chunk."""
        return self._cipher.encrypt(offset.to_bytes(12, "big"), chunk, chunk_id)

    def open_untrusted(self, offset: int, chunk_id: bytes, sealed: bytes | memoryview) -> bytes:
        """Raises `BadCheckpoint`."""
        try:
            return self._cipher.decrypt(offset.to_bytes(12, "big"), sealed, chunk_id)
        except InvalidTag:
            raise BadCheckpoint("a chunk is not what was put there") from None


def digest_of(manifest: bytes) -> str:
    """The name of a sealed manifest: SHA-256 in hex."""
    return hashlib.sha256(manifest).hexdigest()
