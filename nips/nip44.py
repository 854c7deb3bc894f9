"""NIP-44 version 2: ChaCha20 and HMAC-SHA256 under a key that two parties share."""

import base64
import binascii
import hmac
import secrets
from functools import lru_cache

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from nips.crypto import ecdh_x
from nips.errors import BadCiphertext, BadInput
from nips.keys import SecretKey

VERSION = b"\x02"
MAX_PLAINTEXT = 65_535
MIN_PAYLOAD, MAX_PAYLOAD = 132, 87_472  # base64 characters, from the NIP


def encrypt(key: SecretKey, pubkey: str, text: str) -> str:
    """A base64 payload that only the holder of ``pubkey`` can open.

    Raises `BadCiphertext` when the text is empty or longer than 65,535 bytes, or the key is bad.
    """
    return encrypt_with_nonce(conversation_key(key, pubkey), text, secrets.token_bytes(32))


def encrypt_with_nonce(shared: bytes, text: str, nonce: bytes) -> str:
    """As `encrypt`, with the nonce given: for test vectors. A nonce must never be used twice."""
    plain = text.encode()
    if not 1 <= len(plain) <= MAX_PLAINTEXT:
        raise BadCiphertext(f"a message is 1 to {MAX_PLAINTEXT} bytes, this one has {len(plain)}")
    cipher_key, cipher_nonce, mac_key = _message_keys(shared, nonce)
    padded = len(plain).to_bytes(2) + plain + bytes(padded_length(len(plain)) - len(plain))
    body = _chacha20(cipher_key, cipher_nonce, padded)
    mac = hmac.digest(mac_key, nonce + body, "sha256")
    return base64.b64encode(VERSION + nonce + body + mac).decode()


def decrypt_untrusted(key: SecretKey, pubkey: str, payload: str) -> str:
    """The text. Raises `BadCiphertext` and nothing else."""
    try:
        return _open(conversation_key(key, pubkey), payload)
    except (BadInput, UnicodeDecodeError) as error:
        raise BadCiphertext(f"cannot decrypt: {error}") from error


def _open(shared: bytes, payload: str) -> str:
    if payload.startswith("#"):
        raise BadCiphertext("unknown encryption version")
    if not MIN_PAYLOAD <= len(payload) <= MAX_PAYLOAD:
        raise BadCiphertext("payload size")
    try:
        raw = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadCiphertext("not base64") from error
    if raw[:1] != VERSION:
        raise BadCiphertext("unknown encryption version")
    nonce, body, mac = raw[1:33], raw[33:-32], raw[-32:]
    cipher_key, cipher_nonce, mac_key = _message_keys(shared, nonce)
    if not hmac.compare_digest(hmac.digest(mac_key, nonce + body, "sha256"), mac):
        raise BadCiphertext("wrong key or changed payload")
    return _unpad(_chacha20(cipher_key, cipher_nonce, body)).decode()


def _unpad(padded: bytes) -> bytes:
    length = int.from_bytes(padded[:2])
    plain = padded[2 : 2 + length]
    if length == 0 or len(plain) != length or len(padded) != 2 + padded_length(length):
        raise BadCiphertext("padding")
    return plain


def padded_length(length: int) -> int:
    """Lengths are hidden in buckets: 32 bytes at least, then eighths of a power of two."""
    if length <= 32:
        return 32
    power = 1 << (length - 1).bit_length()
    chunk = 32 if power <= 256 else power // 8
    return chunk * ((length - 1) // chunk + 1)


def conversation_key(key: SecretKey, pubkey: str) -> bytes:
    """HKDF-extract of the shared x coordinate; the same for both parties. Raises `BadInput`."""
    return _conversation_key(key.reveal_secret(), pubkey)


@lru_cache(maxsize=4096)
def _conversation_key(secret: bytes, pubkey: str) -> bytes:
    return hmac.digest(b"nip44-v2", ecdh_x(secret, pubkey), "sha256")


def _message_keys(shared: bytes, nonce: bytes) -> tuple[bytes, bytes, bytes]:
    # HKDF-expand by hand: three HMACs are 10 times faster than building the KDF object.
    one = hmac.digest(shared, nonce + b"\x01", "sha256")
    two = hmac.digest(shared, one + nonce + b"\x02", "sha256")
    three = hmac.digest(shared, two + nonce + b"\x03", "sha256")
    return one, two[:12], two[12:] + three[:12]


def _chacha20(cipher_key: bytes, cipher_nonce: bytes, text: bytes) -> bytes:
    # OpenSSL takes a 4-byte little-endian counter before the 12-byte nonce.
    return (
        Cipher(algorithms.ChaCha20(cipher_key, bytes(4) + cipher_nonce), None)
        .encryptor()
        .update(text)
    )
