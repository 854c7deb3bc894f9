"""Enclave images: one layout is written, no other is read, and another reader measures the same."""

import json
import os
import shutil
import stat
import struct
import subprocess
import zlib
from dataclasses import replace

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.image.cpio import BadCpio, Entry, decode_cpio_untrusted, encode_cpio
from bot.image.difference import differences
from bot.image.eif import BadEif, Eif, Kind, decode_eif_untrusted, encode_eif
from bot.image.pcrs import pcrs_of
from bot.image.seal import certificate_untrusted, make_builder_certificate, seal
from bot.image.tree import entries_of
from bot.tools.cli import main
from nips.keys import SecretKey
from nips.tee.nec03 import pcr8_of
from tests.evidence import NOW
from tests.image import reader

TIME = 1_700_000_000
ENTRIES = [
    Entry(b"bin", stat.S_IFDIR | 0o755),
    Entry(b"bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
    Entry("bin/ő".encode(), stat.S_IFREG | 0o755, b"\x7fELF" + bytes(5), 1, 2),
    Entry(b"etc", stat.S_IFREG | 0o600),
]


def ramdisk(entries=ENTRIES):
    return b"".join(encode_cpio(entries, TIME))


EIF = Eif(
    b"kernel" * 9, b"console=ttyS0", (ramdisk(), b"".join(encode_cpio([], TIME))), b'{"a":1}'
)
small = st.binary(max_size=40)
eifs = st.builds(
    Eif, small, small, st.lists(small, min_size=1, max_size=4).map(tuple), small, st.none() | small,
    st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1),
)  # fmt: skip


@given(eifs)
def test_what_is_written_is_read_again_and_measured_alike_by_another_reader(eif):
    raw = encode_eif(eif)
    assert eif == decode_eif_untrusted(raw)
    assert reader.pcrs(raw) == {f"PCR{n}": pcr.hex() for n, pcr in pcrs_of(eif).items()}
    assert [(int(kind), data) for kind, data in eif.sections()] == reader.sections(raw)


@given(eifs, st.data())
@settings(max_examples=300)
def test_any_other_byte_is_another_image_or_none(eif, data):
    raw = bytearray(encode_eif(eif))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadEif):
        decode_eif_untrusted(bytes(raw))


@given(st.binary(max_size=700))
def test_any_bytes(raw):
    with pytest.raises(BadEif):
        decode_eif_untrusted(raw)


@pytest.mark.parametrize("at", [0, 1, 4, 5, 7, 8, 9, 10, 12])
@pytest.mark.parametrize(
    "value", [b"0_000002", b"00000002", b"+0000002", b" 0000002", b"0000000A", b"00X00000"]
)
def test_a_number_that_the_kernel_reads_otherwise_or_that_means_a_hard_link_is_refused(at, value):
    """Else what is shown is not what is unpacked."""
    raw = bytearray(ramdisk())
    begin = 6 + 8 * at
    raw[begin : begin + 8] = value
    with pytest.raises(BadCpio):
        decode_cpio_untrusted(bytes(raw))


@pytest.mark.parametrize("change", ["nlink", "time"])
def test_a_second_entry_that_is_written_otherwise_is_refused(change):
    raw = bytearray(ramdisk())
    second = raw.index(b"070701", 6)
    at = second + 6 + 8 * {"nlink": 4, "time": 5}[change]
    raw[at : at + 8] = b"00000003"
    with pytest.raises(BadCpio, match="as we write it"):
        decode_cpio_untrusted(bytes(raw))


def test_a_time_that_no_header_holds_is_refused():
    for time in (-1, 1 << 32):
        with pytest.raises(BadCpio, match="32 bits"):
            list(encode_cpio(ENTRIES, time))


def rewritten(raw, at, value):
    """With a field changed, and the checksum made to fit."""
    raw = raw[:at] + value + raw[at + len(value) :]
    crc = zlib.crc32(raw[548:], zlib.crc32(raw[:544]))
    return raw[:544] + struct.pack(">I", crc) + raw[548:]


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, b".eiF", "version 4"), (4, b"\0\x03", "version 4"), (6, b"\0\x02", "mean nothing"), (6, b"\0\x01", "processor"),
        (24, b"\0\x01", "mean nothing"), (540, b"\0\0\0\x01", "mean nothing"), (26, b"\0\0", "1 to 32"), (26, b"\0\x21", "1 to 32"),
        (26, b"\0\x02", "1 to 32"), (28 + 8, b"\xff" * 8, "one another"), (284, b"\xff" * 8, "one another"),
        (548, b"\0\x09", "table"), (550, b"\0\x01", "table"), (548, b"\0\x03", "one kernel"), (548, b"\0\x02", "one kernel"),
    ],
)  # fmt: skip
def test_each_rule_of_the_header(at, value, why):
    with pytest.raises(BadEif, match=why):
        decode_eif_untrusted(rewritten(encode_eif(EIF), at, value))


def test_sections_in_another_order_are_refused_though_they_measure_the_same():
    """PCR0 has no separators: what is measured must not be read in two ways."""
    swapped = replace(EIF, kernel=EIF.cmdline, cmdline=EIF.kernel)
    raw = bytearray(encode_eif(swapped))
    raw[548:550], second = b"\0\x02", 548 + 12 + len(EIF.cmdline)
    raw[second : second + 2] = b"\0\x01"
    with pytest.raises(BadEif, match="order"):
        decode_eif_untrusted(rewritten(bytes(raw), 4, b"\0\x04"))
    moved = replace(EIF, kernel=EIF.kernel + EIF.cmdline[:3], cmdline=EIF.cmdline[3:])
    assert pcrs_of(moved)[0] == pcrs_of(EIF)[0], "so the three registers are compared together"


def test_an_image_without_ramdisks_or_with_too_many_is_not_written():
    for ramdisks in ((), (b"x",) * 31):
        with pytest.raises(BadEif):
            encode_eif(replace(EIF, ramdisks=ramdisks))


# -- ramdisks ---------------------------------------------------------------------------------------------


def test_the_kernels_own_format_read_by_cpio(tmp_path):
    """busybox is another reader; a name that is not ASCII is counted in bytes."""
    (tmp_path / "it.cpio").write_bytes(ramdisk())
    with (tmp_path / "it.cpio").open("rb") as file:
        subprocess.run(["busybox", "cpio", "-idm"], stdin=file, cwd=tmp_path, check=True, capture_output=True)  # fmt: skip
    assert os.readlink(tmp_path / "bin/sh") == "busybox"
    assert (tmp_path / "bin/ő").read_bytes() == ENTRIES[2].content
    assert stat.S_IMODE((tmp_path / "etc").stat().st_mode) == 0o600
    assert int((tmp_path / "etc").stat().st_mtime) == TIME


def test_the_same_files_are_the_same_bytes_whatever_order_they_come_in(tmp_path):
    assert ramdisk() == ramdisk(ENTRIES[::-1])
    assert tuple(ENTRIES) == decode_cpio_untrusted(ramdisk())
    for name, order in (("one", ("a", "b", "c.d")), ("two", ("c.d", "b", "a"))):
        for path in order:
            (tmp_path / name / path).mkdir(parents=True)
            (tmp_path / name / path / "file").write_text(path)
        os.utime(tmp_path / name / "a", (len(name), ord(name[0])))
    one, two = (ramdisk(entries_of(tmp_path / name, "rootfs")) for name in ("one", "two"))
    assert one == two
    left_out = ramdisk(entries_of(tmp_path / "one", "rootfs", "a".__eq__))
    assert [b"rootfs", b"rootfs/b", b"rootfs/b/file"] == [
        e.path for e in decode_cpio_untrusted(left_out)
    ][:3]
    os.mkfifo(tmp_path / "one/pipe")
    with pytest.raises(BadCpio, match="neither file, folder nor link"):
        list(entries_of(tmp_path / "one", ""))


@pytest.mark.parametrize(
    "path", [b"", b"/etc", b"a/../b", b"./a", b"a//b", b"a\0b", b"x" * 2_000, b"TRAILER!!!"]
)
def test_paths_that_lead_elsewhere(path):
    with pytest.raises(BadCpio, match="a path"):
        list(encode_cpio([Entry(path, stat.S_IFREG | 0o644)], TIME))


@given(st.data())
@settings(max_examples=300)
def test_a_ramdisk_that_was_changed_or_cut(data):
    raw = bytearray(ramdisk())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert decode_cpio_untrusted(bytes(raw)) is not None
    except BadCpio:
        pass


# -- the signature -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signed():
    certificate, key = make_builder_certificate(SecretKey.generate().pubkey, NOW)
    return replace(EIF, signature=seal(pcrs_of(EIF)[0], certificate, key)), certificate


def test_a_signature_is_over_this_image_and_read_by_another_library(signed):
    eif, certificate = signed
    pcr0 = pcrs_of(eif)[0]
    assert pcr0 == pcrs_of(EIF)[0], "it is not measured"
    assert certificate == certificate_untrusted(eif.signature, pcr0)
    ((section,),) = [cbor2.loads(eif.signature)]
    protected, _, payload, halves = cbor2.loads(bytes(section["signature"]))
    assert {1: -35} == cbor2.loads(protected)
    assert {"register_index": 0, "register_value": list(pcr0)} == cbor2.loads(payload)
    assert 96 == len(halves)
    with pytest.raises(BadEif, match="another image"):
        certificate_untrusted(eif.signature, bytes(48))


@given(st.data())
@settings(max_examples=200)
def test_a_signature_with_any_other_byte(signed, data):
    eif, certificate = signed
    raw = bytearray(eif.signature)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = certificate_untrusted(bytes(raw), pcrs_of(eif)[0])
    except BadEif:
        return
    # PEM says the same in several ways: a line's end, or what stands around it.
    assert found.fingerprint(hashes.SHA256()) == certificate.fingerprint(hashes.SHA256())


# -- the command line ----------------------------------------------------------------------------------------


def test_what_changed_is_named_with_the_registers_that_change(tmp_path, signed, capsys):
    eif, _ = signed
    changed = [
        *ENTRIES[:2],
        replace(ENTRIES[2], content=b"\x7fELF" + bytes(4) + b"\1"),
        ENTRIES[3],
    ]
    other = replace(EIF, ramdisks=(EIF.ramdisks[0], ramdisk(changed)), cmdline=b"quiet")
    one = replace(eif, ramdisks=(eif.ramdisks[0], ramdisk()))
    one = replace(one, signature=None)
    for name, image in (("one", one), ("other", other)):
        (tmp_path / name).write_bytes(encode_eif(image))
    assert 1 == main(["image", "diff", str(tmp_path / "one"), str(tmp_path / "other")])
    assert capsys.readouterr().out.splitlines() == [
        "command line: changed (PCR 0, 1)",
        "ramdisk 2, bin/ő: content, 9 bytes before, 9 now (PCR 0, 2)",
    ]
    assert 0 == main(["image", "diff", str(tmp_path / "one"), str(tmp_path / "one")])
    before, after = pcrs_of(one), pcrs_of(other)
    assert all(before[n] != after[n] for n in (0, 1, 2))
    only = replace(one, ramdisks=other.ramdisks)
    assert [n for n in (0, 1, 2) if pcrs_of(only)[n] != before[n]] == [0, 2]
    rewrittens = replace(one, ramdisks=(one.ramdisks[0], b"".join(encode_cpio(ENTRIES, TIME + 1))))
    assert ["ramdisk 2: the same files, written otherwise (PCR 0, 2)"] == list(
        map(str, differences(one, rewrittens))
    )


def test_looking_into_one(tmp_path, signed, capsys):
    eif, certificate = signed
    (tmp_path / "it.eif").write_bytes(encode_eif(eif))
    assert 0 == main(["image", "pcrs", str(tmp_path / "it.eif"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert {"PCR0", "PCR1", "PCR2", "PCR8"} == told.keys()
    assert reader.pcrs(encode_eif(eif)).items() <= told.items()
    assert pcr8_of(certificate.public_bytes(Encoding.DER)).hex() == told["PCR8"]
    assert 0 == main(["image", "inspect", str(tmp_path / "it.eif")])
    shown = capsys.readouterr().out
    assert "console=ttyS0" in shown
    assert "ramdisk 1, bin/ő" in shown
    assert "4 files" in shown


@pytest.mark.parametrize("how", ["missing", "a folder", "cut", "signed by nobody"])
def test_what_is_no_image_says_so(tmp_path, capsys, how):
    path = tmp_path / "it.eif"
    match how:
        case "a folder":
            path.mkdir()
        case "cut":
            path.write_bytes(encode_eif(EIF)[:-1])
        case "signed by nobody":
            path.write_bytes(encode_eif(replace(EIF, signature=b"\x80")))
    assert 1 == main(["image", "pcrs", str(path)])
    told = capsys.readouterr()
    assert "error: " in told.err
    assert "Traceback" not in told.err + told.out
    assert "" == told.out


def test_every_kind_of_section_has_a_name_of_aws():
    assert ["KERNEL", "CMDLINE", "RAMDISK", "SIGNATURE", "METADATA"] == [
        kind.name for kind in Kind
    ]
    assert shutil.which("busybox"), "the other reader of ramdisks"
