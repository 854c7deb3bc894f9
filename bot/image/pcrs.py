"""What the hypervisor measures of an image: AWS's rules (docs.aws.amazon.com/enclaves, "cryptographic attestation").

    PCR0  kernel, command line, all ramdisks        PCR1  kernel, command line, the first ramdisk
    PCR2  all other ramdisks                        PCR8  the certificate that the image was signed with

Nothing separates the parts: bytes that move from the end of one to the beginning of the next keep PCR0. So the three are always
compared together.
"""

import hashlib
from collections.abc import Sequence

from bot.image.eif import Eif
from nips.tee.nec03 import pcr8_of, pcr_of


def pcrs_of(eif: Eif, certificate_der: bytes | None = None) -> dict[int, bytes]:
    """PCR0, 1, 2, and 8 where the image is signed."""
    boot = [eif.kernel, eif.cmdline]
    first, rest = eif.ramdisks[:1], eif.ramdisks[1:]
    measured = {0: [*boot, *first, *rest], 1: [*boot, *first], 2: [*rest]}
    pcrs = {index: pcr_of(_hash(parts)) for index, parts in measured.items()}
    return pcrs | ({8: pcr8_of(certificate_der)} if certificate_der is not None else {})


def _hash(parts: Sequence[bytes]) -> bytes:
    digest = hashlib.sha384()
    for part in parts:
        digest.update(part)
    return digest.digest()
