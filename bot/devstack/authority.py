"""DEVELOPMENT ONLY. A certificate authority of the shape of AWS's, made on this machine, trusted by nobody.

root → region (20 days) → zone (6 days) → instance (1 day) → leaf (3 hours). Every name in it says what
it is; the root lives 30 days; its key never leaves this machine and is never committed.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from bot.files import write_whole

LABEL = "DEVELOPMENT ONLY - NOT ATTESTED BY AWS"
ROOT_DAYS = 30
LEAF_S = 3 * 3600
CHAIN_S = 20 * 3600
_CAS = (("region.dev.invalid", 2, 20), ("zonal.dev.invalid", 1, 6), ("i-dev.dev.invalid", 0, 1))


@dataclass(frozen=True)
class KeyAndCertificate:
    """A key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


class DevAuthority:
    """The chain above the leaves, made anew before its shortest-lived part ends. ``now``: Unix seconds."""

    def __init__(self, now: int, root: KeyAndCertificate | None = None) -> None:
        self.root = root or make_root(now)
        self._make_chain(now)

    def _make_chain(self, now: int) -> None:
        self._made_at = now
        self.cas = [self.root]
        for name, path_length, days in _CAS:
            self.cas.append(issue_ca(self.cas[-1], name, path_length, days, now))

    @property
    def cabundle(self) -> list[bytes]:
        return [ca.der for ca in self.cas]

    def leaf(self, module_id: str, now: int) -> KeyAndCertificate:
        if now - self._made_at > CHAIN_S:
            self._make_chain(now)
        return issue_leaf(self.cas[-1], f"{module_id}.dev.invalid", now)


def load_authority(folder: Path, now: int) -> DevAuthority:
    """The authority of this folder, made anew when it is missing or about to end."""
    key_file, root_file = folder / "root.key", folder / "root.pem"
    if key_file.exists() and root_file.exists():
        certificate = x509.load_pem_x509_certificate(root_file.read_bytes())
        key = load_pem_private_key(key_file.read_bytes(), None)
        ends = certificate.not_valid_after_utc.timestamp()
        if isinstance(key, ec.EllipticCurvePrivateKey) and ends - now > 21 * 86_400:
            return DevAuthority(now, KeyAndCertificate(key, certificate))
    root = make_root(now)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = root.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_whole(key_file, pem)
    root_file.write_bytes(root.certificate.public_bytes(Encoding.PEM))
    return DevAuthority(now, root)


def make_root(now: int, name: str = "dev-root.invalid") -> KeyAndCertificate:
    key = _new_key()
    return _issue(_name(name), key, _name(name), key, _CaProfile(None), ROOT_DAYS * 86_400, now)


def issue_ca(
    parent: KeyAndCertificate, name: str, path_length: int | None, days: int, now: int
) -> KeyAndCertificate:
    above, profile = parent.certificate.subject, _CaProfile(path_length)
    return _issue(_name(name), _new_key(), above, parent.key, profile, days * 86_400, now)


def issue_leaf(
    parent: KeyAndCertificate, name: str, now: int, life_s: int = LEAF_S
) -> KeyAndCertificate:
    above = parent.certificate.subject
    return _issue(_name(name), _new_key(), above, parent.key, None, life_s, now)


@dataclass(frozen=True)
class _CaProfile:
    path_length: int | None


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _name(common: str) -> x509.Name:
    attributes = (
        (NameOID.COUNTRY_NAME, "XX"),
        (NameOID.ORGANIZATION_NAME, LABEL),
        (NameOID.COMMON_NAME, common),
    )
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in attributes])


def _issue(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    ca: _CaProfile | None,
    life_s: int,
    now: int,
) -> KeyAndCertificate:
    begins = datetime.fromtimestamp(now - 3, UTC)
    constraints = x509.BasicConstraints(ca is not None, ca.path_length if ca else None)
    certificate = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(seconds=life_s + 3))
        .add_extension(constraints, critical=True)
        # On AWS's leaf the key usage is not critical.
        .add_extension(_usage(is_ca=ca is not None), critical=ca is not None)
        .sign(issuer_key, hashes.SHA384())
    )
    return KeyAndCertificate(key, certificate)


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=not is_ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
