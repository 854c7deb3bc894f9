"""NEC-03: the builder's signature (23794; older 63795), tied to the image by a signing certificate.

``nitro-cli`` measures the certificate that an image was signed with into PCR8. The certificate names the
builder's npub, so whoever holds a document with that PCR8 knows the builder. PCR8 alone would not
do: it can be read off a running instance and claimed by anybody; the certificate cannot.
"""

import base64
import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from nips import kinds
from nips.errors import BadCertificate
from nips.event import Event, VerifiedEvent, sign_event, verify_event
from nips.keys import SecretKey
from nips.nip19 import npub
from nips.tee.attestation import Pcrs
from nips.tee.lifetime import check_begun, check_not_over

MAX_CERTIFICATE_TEXT = 8_192
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def pcr_of(measured: bytes) -> bytes:
    """A register that was zero and is extended once: SHA384(48 zero bytes ‖ measured)."""
    return hashlib.sha384(bytes(48) + measured).digest()


def pcr8_of(certificate_der: bytes) -> bytes:
    """What an image signed with that certificate has in PCR8."""
    return pcr_of(hashlib.sha384(certificate_der).digest())


def build_builder_signature(
    key: SecretKey, certificate: x509.Certificate, *, repo: str, version: str, env: str, now: int
) -> VerifiedEvent:
    """The 23794 event for images signed with ``certificate``."""
    tags = builder_tags(certificate, repo=repo, version=version, env=env)
    return sign_event(key, kinds.BUILDER, "", tags, now)


def builder_tags(
    certificate: x509.Certificate, *, repo: str, version: str, env: str
) -> list[tuple[str, ...]]:
    """Of a 23794 event."""
    der = certificate.public_bytes(Encoding.DER)
    return [
        ("-",),
        ("r", repo),
        ("v", version),
        ("t", env),
        ("cert", base64.b64encode(der).decode()),
        ("PCR8", pcr8_of(der).hex()),
    ]


def is_builder_signature(event: Event) -> bool:
    """Old and new kinds; 63795 means two things, told apart by the tags."""
    return event.kind in (kinds.BUILDER, kinds.OLD_BUILDER) and event.has_tag("cert")


def verify_builder_signature(event: Event, pcrs: Pcrs, now: int) -> str:
    """The builder's pubkey. Raises `BadInput`."""
    if not is_builder_signature(event):
        raise BadCertificate("build is not a builder's signature")
    verify_event(event)
    attested = pcrs.hex(8)
    if attested is None or event.tag("PCR8") != attested:
        raise BadCertificate("the builder's PCR8 is not the document's")
    der = verify_builder_certificate(event.tag("cert") or "", event.pubkey, now)
    if pcr8_of(der).hex() != attested:
        raise BadCertificate("the builder's certificate does not lead to PCR8")
    return event.pubkey


def verify_builder_certificate(text: str, pubkey: str, now: int) -> bytes:
    """The DER of a self-signed certificate for that key, valid at ``now``. Raises `BadCertificate`."""
    certificate = _load(text)
    try:
        _check_builder_certificate(certificate, pubkey, now)
        return certificate.public_bytes(Encoding.DER)
    except InvalidSignature:
        raise BadCertificate("the builder's certificate is not self-signed") from None
    except BadCertificate:
        raise
    except Exception as error:  # cryptography parses lazily, and has exceptions of every family
        raise BadCertificate("the builder's certificate does not parse") from error


def _load(text: str) -> x509.Certificate:
    if len(text) > MAX_CERTIFICATE_TEXT:
        raise BadCertificate("the builder's certificate is too long")
    body = "".join(text.strip().removeprefix(_BEGIN).removesuffix(_END).split())
    try:
        return x509.load_der_x509_certificate(base64.b64decode(body, validate=True))
    except Exception as error:  # as above
        raise BadCertificate("the builder's certificate does not parse") from error


def _check_builder_certificate(certificate: x509.Certificate, pubkey: str, now: int) -> None:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise BadCertificate("the builder's key is not on P-384")
    if certificate.issuer != certificate.subject:
        raise BadCertificate("the builder's certificate is not self-signed")
    key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA384()))
    what = "the builder's certificate"
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    check_begun(what, int(begins.timestamp()), now, BadCertificate)
    check_not_over(what, int(ends.timestamp()), now, BadCertificate)
    if _names(certificate, NameOID.ORGANIZATION_NAME) != ["Nostr"]:
        raise BadCertificate("the builder's certificate is not for Nostr (O)")
    # Older ones carry the npub in OU, with CN=Nostr.
    common = _names(certificate, NameOID.COMMON_NAME)
    legacy = _names(certificate, NameOID.ORGANIZATIONAL_UNIT_NAME)
    if npub(pubkey) not in (common if common != ["Nostr"] else legacy):
        raise BadCertificate("the builder's certificate is for another npub")


def _names(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> list[str]:
    return [str(a.value) for a in certificate.subject.get_attributes_for_oid(oid)]
