"""A secret key that signs and opens, and that no log, traceback or f-string can print."""

from nips import crypto
from nips.errors import BadKey


class SecretKey:
    """A Nostr identity. ``pubkey`` is public (hex); the secret leaves only by `reveal_secret`."""

    __slots__ = ("_handle", "_secret", "pubkey")

    def __init__(self, secret: bytes) -> None:
        self._handle, self.pubkey = crypto.keypair(secret)
        self._secret = secret

    @classmethod
    def generate(cls) -> "SecretKey":
        """A new identity from the operating system's randomness."""
        return cls(crypto.generate_secret())

    @classmethod
    def parse(cls, text: str) -> "SecretKey":
        """From 64 hex digits or an ``nsec1…``. Raises `BadKey`, which never repeats the text."""
        from nips.nip19 import secret_from_nsec_untrusted

        if text.startswith("nsec1"):
            return cls(secret_from_nsec_untrusted(text))
        try:
            return cls(bytes.fromhex(text))
        except ValueError:
            raise BadKey("a secret key is 64 hex digits or an nsec") from None

    def sign(self, digest: bytes) -> bytes:
        """A BIP-340 signature over a 32-byte digest."""
        return crypto.schnorr_sign(self._handle, digest)

    def reveal_secret(self) -> bytes:
        """The raw 32 bytes. For storage and key exchange only."""
        return self._secret

    def __repr__(self) -> str:
        return f"SecretKey(pubkey={self.pubkey!r})"

    def __reduce__(self) -> str:
        raise TypeError("a secret key is not picklable")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretKey) and other._secret == self._secret

    def __hash__(self) -> int:
        return hash(self.pubkey)
