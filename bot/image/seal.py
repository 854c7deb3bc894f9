"""A signed image: its PCR0 under a certificate, as ``nitro-cli`` expects it. The certificate becomes PCR8 (NEC-03 says whose it is).

The section is CBOR: a list of one map, of the certificate's PEM and a COSE_Sign1 over ``{register_index: 0, register_value}``;
bytes are written there as lists of numbers. Nothing of it is measured but the certificate, and what it says is never believed:
it is verified over registers that were computed from the rest of the file.
"""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bot.image.eif import BadEif
from nips.nip19 import npub
from nips.tee import cbor
from nips.tee.cose import PROTECTED, decode_sign1_untrusted, sign1

MOST_BYTES = 65_536
# An image that runs longer without a new build is no longer vouched for.
CERTIFICATE_LASTS = timedelta(days=730)
CLOCKS_APART_S = 60


def make_builder_certificate(
    pubkey: str, now: int
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """For one image: whoever has the key can sign others in the builder's name, so it is to be forgotten after it. ``now``: Unix
    seconds, from which it counts."""
    key = ec.generate_private_key(ec.SECP384R1())
    common = x509.NameAttribute(NameOID.COMMON_NAME, npub(pubkey))
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Nostr"), common])
    begins = datetime.fromtimestamp(now - CLOCKS_APART_S, UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + CERTIFICATE_LASTS)
        .sign(key, hashes.SHA384())
    )
    return certificate, key


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
    except Exception as error:  # cryptography has exceptions of every family
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
