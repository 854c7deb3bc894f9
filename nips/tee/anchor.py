"""Trust anchors: the root certificate that a document must lead to, compared as a whole.

The anchor comes from the caller, never from a document: whoever puts a root of his own with the same
subject and serial number into a document has proved nothing. Which kind of trust is reported
depends on the anchor that verified, and on nothing that the document says.
"""

import base64
import hashlib
from dataclasses import dataclass
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nips.errors import BadAttestation


@dataclass(frozen=True)
class Anchor:
    """A root certificate (DER). ``is_development``: made on some machine, proves nothing to others."""

    der: bytes
    is_development: bool

    @cached_property
    def sha256(self) -> str:
        """The fingerprint of the whole certificate, in hex."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def trust(self) -> str:
        """Who vouches, in a word: ``aws`` or ``development:<fingerprint>``."""
        return f"development:{self.sha256}" if self.is_development else "aws"


def development_anchor(certificate: bytes) -> Anchor:
    """An anchor from a PEM or DER root that somebody named explicitly. Raises `BadAttestation`.

    What it vouches for is `is_development` whatever the certificate says; the real root is refused
    here, so that nobody calls a production instance a toy by mistake.
    """
    try:
        pem = certificate.lstrip().startswith(b"-----BEGIN")
        load = x509.load_pem_x509_certificate if pem else x509.load_der_x509_certificate
        der = load(certificate).public_bytes(Encoding.DER)
    except Exception as error:  # cryptography has exceptions of every family
        raise BadAttestation("the development root is not an X.509 certificate") from error
    if der == AWS_NITRO_ROOT_G1.der:
        raise BadAttestation("that is AWS's own root, not a development root")
    return Anchor(der, is_development=True)


# "AWS Nitro Enclaves Root G1", CN=aws.nitro-enclaves, 2019-10-28 to 2049-10-28. SHA-256 of the DER:
# 641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b
AWS_NITRO_ROOT_G1 = Anchor(
    base64.b64decode(
        "MIICETCCAZagAwIBAgIRAPkxdWgbkK/hHUbMtOTn+FYwCgYIKoZIzj0EAwMwSTELMAkGA1UEBhMCVVMxDzANBgNV"
        "BAoMBkFtYXpvbjEMMAoGA1UECwwDQVdTMRswGQYDVQQDDBJhd3Mubml0cm8tZW5jbGF2ZXMwHhcNMTkxMDI4MTMy"
        "ODA1WhcNNDkxMDI4MTQyODA1WjBJMQswCQYDVQQGEwJVUzEPMA0GA1UECgwGQW1hem9uMQwwCgYDVQQLDANBV1Mx"
        "GzAZBgNVBAMMEmF3cy5uaXRyby1lbmNsYXZlczB2MBAGByqGSM49AgEGBSuBBAAiA2IABPwCVOumCMHzaHDimtqQ"
        "vkY4MpJzbolL//Zy2YlES1BR5TSksfbb48C8WBoyt7F2Bw7eEtaaP+ohG2bnUs990d0JX28TcPQXCEPZ3BABIeTP"
        "YwEoCWZEh8l5YoQwTcU/9KNCMEAwDwYDVR0TAQH/BAUwAwEB/zAdBgNVHQ4EFgQUkCW1DdkFR+eWw5b6cp3Pmanf"
        "S5YwDgYDVR0PAQH/BAQDAgGGMAoGCCqGSM49BAMDA2kAMGYCMQCjfy+Rocm9Xue4YnwWmNJVA44fA0P5W2OpYow9"
        "OYCVRaEevL8uO1XYru5xtMPWrfMCMQCi85sWBbJwKKXdS6BptQFuZbT73o/gBh1qUxl/nNr12UO8Yfwr6wPLb+6N"
        "IwLz3/Y="
    ),
    is_development=False,
)
