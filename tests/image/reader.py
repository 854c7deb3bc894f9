"""Another reader of enclave images, by AWS's description alone: it shares nothing with ours but the bytes."""

import hashlib
import zlib

ZERO = bytes(48)


def number(raw, at, size):
    return int.from_bytes(raw[at : at + size], "big")


def sections(raw):
    """(type, data) in the order of the header's table; the checksum is checked."""
    assert raw[:4] == b".eif"
    assert number(raw, 4, 2) == 4
    count = number(raw, 26, 2)
    found, checked = [], zlib.crc32(raw[:544])
    for index in range(count):
        at, size = number(raw, 28 + 8 * index, 8), number(raw, 28 + 8 * 32 + 8 * index, 8)
        assert number(raw, at + 4, 8) == size
        checked = zlib.crc32(raw[at : at + 12 + size], checked)
        found.append((number(raw, at, 2), raw[at + 12 : at + 12 + size]))
    assert checked == number(raw, 544, 4)
    return found


def pcrs(raw):
    """As in the user guide: the registers 0, 1 and 2."""
    found = sections(raw)
    kernel, cmdline = (next(data for kind, data in found if kind == wanted) for wanted in (1, 2))
    ramdisks = [data for kind, data in found if kind == 3]

    def extended(content):
        return hashlib.sha384(ZERO + hashlib.sha384(content).digest()).hexdigest()

    return {
        "PCR0": extended(kernel + cmdline + b"".join(ramdisks)),
        "PCR1": extended(kernel + cmdline + ramdisks[0]),
        "PCR2": extended(b"".join(ramdisks[1:])),
    }
