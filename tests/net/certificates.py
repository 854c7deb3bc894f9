"""An authority of a test's own, and one certificate of its."""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


def make_certificates(folder, name):
    """Writes ``authority.pem``, ``<name>.pem`` and ``<name>.key``. Returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    root_key, key = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    root = _sign("authority", root_key.public_key(), "authority", root_key, ca=True)
    leaf = _sign(name, key.public_key(), "authority", root_key, ca=False)
    (folder / "authority.pem").write_bytes(root.public_bytes(Encoding.PEM))
    (folder / f"{name}.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return folder / "authority.pem"


def _sign(subject, key, issuer, issuer_key, ca):
    now = datetime.now(UTC)
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (subject, issuer)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(subject)]), False
        )
    return builder.sign(issuer_key, hashes.SHA256())
