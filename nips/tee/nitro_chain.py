"""The certificates under an attestation document: from the pinned root, in the order given, to the leaf.

root → region (20 days) → zone (6 days) → instance (1 day) → leaf (3 hours), all P-384 with SHA-384.
No path is searched for: the order of the bundle is the path. What is remembered between calls is
that a certificate's signature and profile held *at its place in its path*; validity in time is
looked at again on every use, for every certificate.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from nips.errors import BadAttestation
from nips.tee.lifetime import check_begun, check_not_over

REMEMBERED = 512
MAX_CRL_BYTES, MAX_CRLS = 1 << 20, 8
_SHA384 = ec.ECDSA(hashes.SHA384())
_KNOWN_EXTENSIONS = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
    }
)


@dataclass(frozen=True)
class _Link:
    """A certificate whose signature and profile held at its place."""

    subject: x509.Name
    issuer: x509.Name
    serial: int
    key: ec.EllipticCurvePublicKey
    not_before: int
    not_after: int


@dataclass(frozen=True)
class Chain:
    """A path that verified; times are Unix seconds."""

    links: tuple[_Link, ...]

    @property
    def leaf_key(self) -> ec.EllipticCurvePublicKey:
        """The key that signs documents."""
        return self.links[-1].key

    @property
    def leaf_not_after(self) -> int:
        """When the leaf ends; others may end earlier."""
        return self.links[-1].not_after

    @property
    def not_before(self) -> int:
        """When the last of them began."""
        return max(link.not_before for link in self.links)

    @property
    def not_after(self) -> int:
        """When the first of them ends."""
        return min(link.not_after for link in self.links)

    def check_revocation(self, crls: Sequence[bytes], now: int) -> None:
        """Raise `BadAttestation` if a list revokes one of us, or is not a list to go by."""
        if len(crls) > MAX_CRLS:
            raise BadAttestation(f"more than {MAX_CRLS} revocation lists")
        for raw in crls:
            try:
                self._check_one_list(_load_crl(raw), now)
            except BadAttestation:
                raise
            except Exception as error:  # as below: parsed lazily
                raise BadAttestation("a revocation list does not parse") from error

    def _check_one_list(self, crl: x509.CertificateRevocationList, now: int) -> None:
        issuer = next((link for link in self.links if link.subject == crl.issuer), None)
        if issuer is None or not crl.is_signature_valid(issuer.key):
            raise BadAttestation("a revocation list is not by a certificate of this chain")
        what, ends = "a revocation list", crl.next_update_utc
        if ends is None:
            raise BadAttestation("a revocation list never says when it ends")
        check_begun(what, int(crl.last_update_utc.timestamp()), now, BadAttestation)
        check_not_over(what, int(ends.timestamp()), now, BadAttestation)
        for link in self.links:
            if link.issuer == crl.issuer:
                revoked = crl.get_revoked_certificate_by_serial_number(link.serial)
                if revoked is not None:
                    raise BadAttestation("a certificate of the chain is revoked")


def _load_crl(raw: bytes) -> x509.CertificateRevocationList:
    if len(raw) > MAX_CRL_BYTES:
        raise BadAttestation(f"a revocation list has more than {MAX_CRL_BYTES} bytes")
    load = x509.load_pem_x509_crl if raw.startswith(b"-----BEGIN") else x509.load_der_x509_crl
    try:
        return load(raw)
    except ValueError as error:
        raise BadAttestation("a revocation list does not parse") from error


class ChainVerifier:
    """Verifies paths from one root (DER)."""

    def __init__(self, root_der: bytes) -> None:
        self._root_der = root_der
        self._remembered: OrderedDict[tuple[bytes, int], _Link] = OrderedDict()

    def verify(self, ders: Sequence[bytes], now: int) -> Chain:
        """``ders``: root first, leaf last. Raises `BadAttestation`."""
        # The whole certificate: subject and serial number can be copied by anybody.
        if ders[0] != self._root_der:
            raise BadAttestation("the chain does not begin with the trusted root")
        if len(set(ders)) != len(ders):
            raise BadAttestation("a certificate stands twice in the chain")
        if len(ders) < 2:
            raise BadAttestation("the chain has no leaf")
        links: list[_Link] = []
        path = b""
        for index, der in enumerate(ders):
            # Named by the whole path from the root, so that a link never holds under another parent.
            path = hashlib.sha256(path + hashlib.sha256(der).digest()).digest()
            cas_below = len(ders) - 2 - index
            parent = links[-1] if links else None
            links.append(self._link(path, der, parent, cas_below))
            _check_validity(links[-1], index, now)
        return Chain(tuple(links))

    def _link(self, path: bytes, der: bytes, parent: _Link | None, cas_below: int) -> _Link:
        # The place counts from the end as well: a CA is not a leaf, and path lengths look down.
        known = self._remembered.get((path, cas_below))
        if known is not None:
            self._remembered.move_to_end((path, cas_below))
            return known
        try:
            link = _verified_link(der, parent, cas_below)
        except InvalidSignature:
            raise BadAttestation("a certificate's signature does not hold") from None
        except BadAttestation:
            raise
        except (
            Exception
        ) as error:  # cryptography parses lazily, and has exceptions of every family
            raise BadAttestation("a certificate does not parse") from error
        self._remembered[path, cas_below] = link
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return link


def _check_validity(link: _Link, index: int, now: int) -> None:
    what = f"certificate {index} of the chain"
    check_begun(what, link.not_before, now, BadAttestation)
    check_not_over(what, link.not_after, now, BadAttestation)


def _verified_link(der: bytes, parent: _Link | None, cas_below: int) -> _Link:
    certificate = x509.load_der_x509_certificate(der)
    key = _check_algorithms(certificate)
    link = _Link(
        certificate.subject,
        certificate.issuer,
        certificate.serial_number,
        key,
        int(certificate.not_valid_before_utc.timestamp()),
        int(certificate.not_valid_after_utc.timestamp()),
    )
    issuer = parent or link
    if certificate.issuer != issuer.subject:
        raise BadAttestation("a certificate names another issuer than the one above it")
    issuer.key.verify(certificate.signature, certificate.tbs_certificate_bytes, _SHA384)
    # Extensions are the largest part of the parser; a stranger's are not looked at.
    _check_extensions(certificate.extensions, cas_below)
    return link


def _check_algorithms(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Version, serial number, P-384 and SHA-384 (RFC 5280)."""
    if certificate.version is not x509.Version.v3:
        raise BadAttestation("a certificate is not X.509 v3")
    if certificate.serial_number <= 0:
        raise BadAttestation("a certificate's serial number is not positive")
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        raise BadAttestation("a certificate is not signed with ECDSA and SHA-384")
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise BadAttestation("a certificate's key is not on P-384")
    return key


def _check_extensions(extensions: x509.Extensions, cas_below: int) -> None:
    """``cas_below`` is -1 for the leaf."""
    if any(e.critical and e.oid not in _KNOWN_EXTENSIONS for e in extensions):
        raise BadAttestation("a certificate has a critical extension that is unknown here")
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        raise BadAttestation("a certificate lacks basicConstraints or keyUsage") from None
    if cas_below < 0:
        if constraints.value.ca or not usage.digital_signature:
            raise BadAttestation("the leaf is a CA, or may not sign")
    else:
        _check_ca(constraints, usage, cas_below)


def _check_ca(
    constraints: x509.Extension[x509.BasicConstraints], usage: x509.KeyUsage, cas_below: int
) -> None:
    if not (constraints.critical and constraints.value.ca and usage.key_cert_sign):
        raise BadAttestation("a certificate in the chain may not sign others")
    longest = constraints.value.path_length
    if longest is not None and cas_below > longest:
        raise BadAttestation("the chain is longer than a certificate in it allows")
