"""A signed image: its PCR0 under a certificate, as ``nitro-cli`` expects it. The certificate becomes PCR8 (NEC-03 says whose it is).

The section is CBOR: a list of one map, of the certificate's PEM and a COSE_Sign1 over ``{register_index: 0, register_value}``;
bytes are written there as lists of numbers. Nothing of it is measured but the certificate, and what it says is never believed:
it is verified over registers that were computed from the rest of the file.
"""

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding

from bot.image.eif import BadEif
from nips.errors import BadInput
from nips.tee import cbor

MOST_BYTES = 65_536
# RFC 9053: ECDSA with SHA-384, which is what a P-384 key signs with; halves of 48 bytes.
_ES384, _HALF = -35, 48
_PROTECTED = cbor.encode({1: _ES384})


def seal(pcr0: bytes, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The signature section. The key signs this once, and is to be forgotten then."""
    payload = _payload(pcr0)
    r, s = decode_dss_signature(key.sign(_signed(payload), ec.ECDSA(hashes.SHA384())))
    halves = r.to_bytes(_HALF, "big") + s.to_bytes(_HALF, "big")
    signature = cbor.encode([_PROTECTED, {}, payload, halves])
    pem = certificate.public_bytes(Encoding.PEM)
    return cbor.encode([{"signing_certificate": list(pem), "signature": list(signature)}])


def certificate_untrusted(section: bytes, pcr0: bytes) -> x509.Certificate:
    """The certificate by which this very PCR0 is signed. Whose it is, and whether that is anybody, is another question.
    Raises `BadEif`."""
    if len(section) > MOST_BYTES:
        raise BadEif(f"a signature has at most {MOST_BYTES} bytes")
    try:
        match cbor.decode_untrusted(section):
            case [{"signing_certificate": list(pem), "signature": list(signature), **rest}] if (
                not rest
            ):
                certificate = x509.load_pem_x509_certificate(bytes(pem))
                # NEC-03: it names its builder itself, so every bit of it is signed by the same key.
                certificate.verify_directly_issued_by(certificate)
                _verify(bytes(signature), certificate, pcr0)
                return certificate
            case _:
                pass
    except BadEif:
        raise
    except (BadInput, ValueError, TypeError, InvalidSignature) as error:
        raise BadEif(
            f"the signature does not hold: {str(error) or 'it is of another key'}"
        ) from error
    raise BadEif("the signature has another shape")


def _verify(signature: bytes, certificate: x509.Certificate, pcr0: bytes) -> None:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise BadEif("an image is signed by a key on P-384")
    match cbor.decode_untrusted(signature):
        case [bytes(protected), dict(unprotected), bytes(payload), bytes(halves)]:
            pass
        case _:
            raise BadEif("the signature has another shape")
    if protected != _PROTECTED or unprotected or len(halves) != 2 * _HALF:
        raise BadEif("the signature is of another algorithm")
    if payload != _payload(pcr0):
        raise BadEif("the signature is over another image")
    r, s = (int.from_bytes(half, "big") for half in (halves[:_HALF], halves[_HALF:]))
    key.verify(encode_dss_signature(r, s), _signed(payload), ec.ECDSA(hashes.SHA384()))


def _payload(pcr0: bytes) -> bytes:
    return cbor.encode({"register_index": 0, "register_value": list(pcr0)})


def _signed(payload: bytes) -> bytes:
    """RFC 9052, 4.4."""
    return cbor.encode(["Signature1", _PROTECTED, b"", payload])
