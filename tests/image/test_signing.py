"""An image is signed by who built it and by its maintainers, with the commands for it; what they say is checked as strangers would."""

import base64
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from bot.image.cpio import Entry
from bot.image.eif import Eif, decode_eif_untrusted, encode_eif
from bot.image.pcrs import pcrs_of
from bot.image.ramdisk import encode_ramdisk
from bot.image.seal import certificate_untrusted
from bot.tools.cli import main
from bot.tools.images import run
from nips.event import parse_event_json_untrusted
from nips.keys import SecretKey
from nips.tee.attestation import Pcrs
from nips.tee.nec03 import pcr8_of, verify_builder_certificate, verify_builder_signature
from nips.tee.nec05 import verify_release_signature

RAMDISK = encode_ramdisk([Entry(b"init", stat.S_IFREG | 0o755, b"#!")], 0, packed=True)
EIF = Eif(b"kernel", b"console=ttyS0", (RAMDISK, RAMDISK), b"{}")
REPO, WORDS = (
    "https://example.com/enclaved",
    ["--repo", "https://example.com/enclaved", "--version", "1.0.0"],
)


@pytest.fixture
def place(tmp_path):
    key = SecretKey.generate()
    (tmp_path / "me.key").write_text(key.reveal_secret().hex())
    (tmp_path / "me.key").chmod(0o600)
    (tmp_path / "unsigned.eif").write_bytes(encode_eif(EIF))
    return tmp_path, key


def sign(folder, *more):
    return main([
        "image", "sign-build", f"{folder}/unsigned.eif", "--key", f"{folder}/me.key", "--out", f"{folder}/signed.eif",
        "--event", f"{folder}/build.json", *WORDS, *more,
    ])  # fmt: skip


def test_a_signed_image_is_the_same_image_and_its_certificate_leads_to_its_builder(place, capsys):
    folder, key = place
    assert 0 == sign(folder)
    signed = decode_eif_untrusted((folder / "signed.eif").read_bytes())
    assert EIF == replace(signed, signature=None)
    pcrs = pcrs_of(signed)
    certificate = certificate_untrusted(signed.signature, pcrs[0])
    der = certificate.public_bytes(Encoding.DER)
    pcrs[8] = pcr8_of(der)
    event = parse_event_json_untrusted((folder / "build.json").read_bytes())
    assert key.pubkey == verify_builder_signature(event, Pcrs(pcrs), event.created_at)
    assert der == verify_builder_certificate(
        base64.b64encode(der).decode(), key.pubkey, event.created_at
    )
    assert [["r", REPO], ["v", "1.0.0"], ["t", "dev"]] == [
        list(t) for t in event.tags if t[0] in "rvt"
    ]
    assert pcrs[8].hex() in capsys.readouterr().out
    assert 0 == main(["image", "pcrs", "--json", f"{folder}/signed.eif"])
    assert {f"PCR{i}": pcrs[i].hex() for i in (0, 1, 2, 8)} == json.loads(capsys.readouterr().out)
    # Its key was used once: another signature is by another certificate, of the same image.
    assert 0 == sign(folder)
    again = decode_eif_untrusted((folder / "signed.eif").read_bytes())
    assert certificate_untrusted(again.signature, pcrs[0]) != certificate


def test_a_maintainer_signs_what_is_measured(place, capsys):
    folder, key = place
    command = [
        "image",
        "sign-release",
        f"{folder}/unsigned.eif",
        "--key",
        f"{folder}/me.key",
        "--no-publish",
        *WORDS,
    ]
    assert 0 == main([*command, "--prod"])
    event = parse_event_json_untrusted(capsys.readouterr().out.encode())
    release = verify_release_signature(event, Pcrs(pcrs_of(EIF)))
    assert (key.pubkey, REPO) == (release.maintainer, release.repo)


@pytest.mark.parametrize(("change", "says"), [
    (lambda f: os.replace(f / "signed.eif", f / "unsigned.eif"), "is signed already"),
    (lambda f: (f / "unsigned.eif").write_bytes(b"EIF"), "header of 548 bytes"),
    (lambda f: (f / "unsigned.eif").unlink(), "No such file"),
    (lambda f: (f / "me.key").write_text("nsec1"), "not an nsec"),
])  # fmt: skip
def test_what_cannot_be_signed_is_said(place, capsys, change, says):
    folder, _ = place
    assert 0 == sign(folder)
    change(folder)
    capsys.readouterr()
    assert 1 == sign(folder)
    assert says in capsys.readouterr().err


def test_an_image_is_started_where_that_can_be_and_else_it_is_said(place, capsys, monkeypatch):
    folder, _ = place
    became = []
    monkeypatch.setattr(run.os, "execv", lambda program, words: became.append(words) or 0)
    monkeypatch.setattr(run, "NITRO", folder / "none")
    file = str(folder / "unsigned.eif")
    assert 1 == main(["image", "run", file])
    assert "no Nitro host" in capsys.readouterr().err
    monkeypatch.setattr(run, "NITRO", folder)
    monkeypatch.setattr(run.shutil, "which", lambda name: f"/usr/bin/{name}")
    main(["image", "run", file, "--memory", "2048", "--cpus", "4", "--cid", "20"])
    assert [
        "nitro-cli",
        "run-enclave",
        "--eif-path",
        file,
        "--memory",
        "2048",
        "--cpu-count",
        "4",
        "--enclave-cid",
        "20",
    ] == became[-1]
    main(["image", "run", file, "--emulate"])
    (initrd,) = [
        words[1]
        for words in zip(became[-1], became[-1][1:], strict=False)
        if words[0] == "-initrd"
    ]
    assert RAMDISK * 2 == Path(initrd).read_bytes()
    assert "DEVELOPMENT ONLY" in capsys.readouterr().err
    monkeypatch.setattr(run.shutil, "which", lambda _: None)
    assert 1 == main(["image", "run", file, "--emulate"])
    assert "is not installed" in capsys.readouterr().err
