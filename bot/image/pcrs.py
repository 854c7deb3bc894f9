"""What the hypervisor measures of an image: AWS's rules (docs.aws.amazon.com/enclaves, "cryptographic attestation").

    PCR0  kernel, command line, all ramdisks        PCR1  kernel, command line, the first ramdisk
    PCR2  all other ramdisks                        PCR8  the certificate that the image was signed with

Nothing separates the parts: bytes that move from the end of one to the beginning of the next keep PCR0. So the three are always
compared together.
"""

import hashlib
from collections.abc import Sequence

from bot.image.eif import Eif
from nips.tee.nec03 import pcr_of


def pcrs_of(eif: Eif) -> dict[int, bytes]:
    """PCR0, 1 and 2; what is in PCR8, `nips.tee.nec03` says."""
    boot = [eif.kernel, eif.cmdline]
    first, rest = eif.ramdisks[:1], eif.ramdisks[1:]
    measured = {0: [*boot, *first, *rest], 1: [*boot, *first], 2: [*rest]}
    return {index: pcr_of(_hash(parts)) for index, parts in measured.items()}


def _hash(parts: Sequence[bytes]) -> bytes:
    digest = hashlib.sha384()
    for part in parts:
        digest.update(part)
    return digest.digest()
