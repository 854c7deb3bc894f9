"""A signed image: its PCR0 under a certificate, as ``nitro-cli`` expects it. The certificate becomes PCR8 (NEC-03 says whose it is).

The section is CBOR: a list of one map, of the certificate's PEM and a COSE_Sign1 over ``{register_index: 0, register_value}``;
bytes are written there as lists of numbers. Nothing of it is measured but the certificate, and what it says is never believed:
it is verified over registers that were computed from the rest of the file.
"""

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from bot.image.eif import BadEif
from nips.tee import cbor
from nips.tee.cose import PROTECTED, decode_sign1_untrusted, sign1

MOST_BYTES = 65_536


def seal(pcr0: bytes, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The signature section. The key signs this once, and is to be forgotten then."""
    signature = sign1(_payload(pcr0), key).encoded()
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
    except (ValueError, TypeError, InvalidSignature) as error:
        raise BadEif(
            f"the signature does not hold: {str(error) or 'it is of another key'}"
        ) from error
    raise BadEif("the signature has another shape")


def _verify(signature: bytes, certificate: x509.Certificate, pcr0: bytes) -> None:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise BadEif("an image is signed by a key on P-384")
    cose = decode_sign1_untrusted(signature)
    # One way to write it, as for all else in an image.
    if cose.protected != PROTECTED:
        raise BadEif("the signature is of another algorithm")
    if cose.payload != _payload(pcr0):
        raise BadEif("the signature is over another image")
    cose.verify(key)


def _payload(pcr0: bytes) -> bytes:
    return cbor.encode({"register_index": 0, "register_value": list(pcr0)})
