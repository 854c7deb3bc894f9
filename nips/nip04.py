"""NIP-04 encryption, for wallets that know nothing better: AES-256-CBC, no authentication."""

import base64
import binascii
import secrets

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from nips.crypto import ecdh_x
from nips.errors import BadCiphertext
from nips.keys import SecretKey

MAX_PAYLOAD = 256 * 1024


def encrypt(key: SecretKey, pubkey: str, text: str) -> str:
    """``base64?iv=base64`` for the holder of ``pubkey``."""
    iv = secrets.token_bytes(16)
    padder = PKCS7(128).padder()
    padded = padder.update(text.encode()) + padder.finalize()
    encryptor = _cipher(key, pubkey, iv).encryptor()
    body = encryptor.update(padded) + encryptor.finalize()
    return f"{base64.b64encode(body).decode()}?iv={base64.b64encode(iv).decode()}"


def decrypt_untrusted(key: SecretKey, pubkey: str, payload: str) -> str:
    """The text. Raises `BadCiphertext`."""
    body_text, mark, iv_text = payload.partition("?iv=")
    if not mark or len(payload) > MAX_PAYLOAD:
        raise BadCiphertext("not a NIP-04 payload")
    try:
        body, iv = (
            base64.b64decode(body_text, validate=True),
            base64.b64decode(iv_text, validate=True),
        )
        if len(iv) != 16:
            raise BadCiphertext("the initialisation vector is not 16 bytes")
        decryptor = _cipher(key, pubkey, iv).decryptor()
        padded = decryptor.update(body) + decryptor.finalize()
        unpadder = PKCS7(128).unpadder()
        return (unpadder.update(padded) + unpadder.finalize()).decode()
    except (ValueError, binascii.Error) as error:
        raise BadCiphertext("not a NIP-04 payload for this key") from error


def is_nip04(payload: str) -> bool:
    """NIP-04 payloads end in ``?iv=`` and 24 base64 characters; NIP-44 ones never hold a ``?``."""
    return "?iv=" in payload


def _cipher(key: SecretKey, pubkey: str, iv: bytes) -> Cipher[modes.CBC]:
    return Cipher(algorithms.AES(ecdh_x(key.reveal_secret(), pubkey)), modes.CBC(iv))
