"""COSE_Sign1 (RFC 9052) with ES384 and nothing else: what attestation documents and enclave images are signed with."""

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from nips.errors import BadInput
from nips.tee import cbor

# RFC 9053: ECDSA with SHA-384, by a key on P-384; the halves of a signature have 48 bytes.
_ES384, _HALF = {1: -35}, 48
PROTECTED = cbor.encode(_ES384)
_ARRAY_OF_FOUR = b"\x84"


class BadCose(BadInput):
    """Not a COSE_Sign1 by ES384, or its signature does not hold."""


@dataclass(frozen=True)
class CoseSign1:
    """The four parts of a COSE_Sign1; the unprotected header is empty."""

    protected: bytes
    payload: bytes
    signature: bytes

    def signed_bytes(self) -> bytes:
        """Sig_structure over the payload exactly as it was received (RFC 9052, section 4.4)."""
        return cbor.encode(["Signature1", self.protected, b"", self.payload])

    def encoded(self) -> bytes:
        """As the security module writes it: untagged."""
        return cbor.encode([self.protected, {}, self.payload, self.signature])

    def verify(self, key: ec.EllipticCurvePublicKey) -> None:
        """Raises `BadCose`."""
        halves = (self.signature[:_HALF], self.signature[_HALF:])
        r, s = (int.from_bytes(half, "big") for half in halves)
        try:
            key.verify(
                utils.encode_dss_signature(r, s), self.signed_bytes(), ec.ECDSA(hashes.SHA384())
            )
        except InvalidSignature:
            raise BadCose("the signature does not hold") from None


def sign1(payload: bytes, key: ec.EllipticCurvePrivateKey) -> CoseSign1:
    """``key``: on P-384."""
    unsigned = CoseSign1(PROTECTED, payload, b"")
    der = key.sign(unsigned.signed_bytes(), ec.ECDSA(hashes.SHA384()))
    halves = [number.to_bytes(_HALF, "big") for number in utils.decode_dss_signature(der)]
    return CoseSign1(PROTECTED, payload, b"".join(halves))


def decode_sign1_untrusted(raw: bytes) -> CoseSign1:
    """Shape and types; the signature is not looked at. Raises `BadCose`, `BadCbor`."""
    # Only a payload is ever of indefinite length; around it that would be one more way to write the same.
    if raw[:1] != _ARRAY_OF_FOUR:
        raise BadCose("not a COSE_Sign1 of four parts")
    match cbor.decode_untrusted(raw):
        case [bytes(protected), dict(unprotected), bytes(payload), bytes(signature)]:
            pass
        case _:
            raise BadCose("not a COSE_Sign1 of four parts")
    if unprotected:
        raise BadCose("the unprotected header is not empty")
    if cbor.decode_untrusted(protected) != _ES384:
        raise BadCose("the protected header is not exactly ES384")
    if len(signature) != 2 * _HALF:
        raise BadCose("the signature is not of 96 bytes")
    return CoseSign1(protected, payload, signature)
