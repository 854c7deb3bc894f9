"""Real documents at their own time, and every way in which one may be wrong."""

import datetime
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from bot.devstack.authority import DevAuthority, KeyAndCertificate, issue_ca, issue_leaf, make_root
from bot.devstack.nsm import sign_document, sign_payload
from nips.errors import BadAttestation
from nips.tee import cbor
from nips.tee.anchor import AWS_NITRO_ROOT_G1, Anchor, development_anchor
from nips.tee.attestation import (
    MAX_DOCUMENT_BYTES,
    Pcrs,
    Verifier,
    decode_document_untrusted,
)
from nips.tee.lifetime import told
from tests.evidence import FOLDER, HARDWARE, NOW, Hardware, measured, real_documents

DOCUMENTS = real_documents()
P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
PCRS = {0: measured("0"), 1: measured("1"), 2: measured("2"), 4: measured("4")}
each_real = pytest.mark.parametrize("meta", DOCUMENTS, ids=lambda m: m["file"].split(".")[0])


def read(meta) -> bytes:
    return (FOLDER / meta["file"]).read_bytes()


def seconds(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).timestamp())


def at(meta) -> int:
    return seconds(meta["document_time"]) + 1


def parts(raw: bytes) -> list:
    return cbor.decode_untrusted(raw)


@pytest.fixture(scope="module")
def aws():
    return Verifier(AWS_NITRO_ROOT_G1)


def refused(verifier, raw, now, **options) -> str:
    with pytest.raises(BadAttestation) as caught:
        verifier.verify(raw, now, **options)
    return str(caught.value)


# -- real documents -----------------------------------------------------------------------------------


def test_the_pinned_root_is_the_one_that_aws_publishes():
    assert (FOLDER / "aws_root_g1.der").read_bytes() == AWS_NITRO_ROOT_G1.der
    assert AWS_NITRO_ROOT_G1.sha256 == (
        "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
    )


@each_real
def test_a_real_document_verifies_at_its_own_time_tagged_or_not(aws, meta):
    for raw in (read(meta), b"\xd2" + read(meta)):
        attested = aws.verify(raw, at(meta))
        assert (meta["module_id"], meta["debug"], "aws") == (
            attested.document.module_id, attested.is_debug, attested.anchor.trust,
        )  # fmt: skip
        assert seconds(meta["valid_from"]) == attested.not_before
        assert seconds(meta["valid_until"]) == attested.not_after


@each_real
def test_it_holds_from_its_first_second_to_its_last_and_not_one_more(aws, meta):
    begins, ends = seconds(meta["valid_from"]), seconds(meta["valid_until"])
    aws.verify(read(meta), ends)
    assert "has expired" in refused(aws, read(meta), ends + 1)
    assert begins <= seconds(meta["document_time"]) <= ends
    assert "not valid yet" in refused(aws, read(meta), begins - 301)
    assert "has expired" in refused(aws, read(meta), 2**40)
    assert "not valid yet" in refused(aws, read(meta), 0)


@each_real
def test_clocks_may_differ_by_five_minutes_and_a_refusal_names_both(aws, meta):
    """A verifier whose clock was four seconds slow was refused: the leaf began three seconds before."""
    raw, signed_at = read(meta), seconds(meta["document_time"])
    begins = max(seconds(meta["valid_from"]), signed_at)
    for early_s in (0, 1, 4, 300):
        assert signed_at == aws.verify(raw, begins - early_s).document.timestamp_s
    why = refused(aws, raw, begins - 301)
    assert f"your clock says {told(begins - 301)}" in why
    assert f"says {told(begins)}; is your clock right?" in why


@each_real
def test_the_chain_agrees_with_an_independent_path_builder(meta):
    from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store

    _, document = decode_document_untrusted(read(meta))
    root, *between = map(x509.load_der_x509_certificate, document.cabundle)
    when = datetime.datetime.fromtimestamp(at(meta), datetime.UTC).replace(tzinfo=None)
    usage = (x509.KeyUsage, Criticality.AGNOSTIC, None)
    builder = PolicyBuilder().store(Store([root])).time(when).max_chain_depth(3)
    policy = builder.extension_policies(
        ca_policy=ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.CRITICAL, None),
        ee_policy=ExtensionPolicy.permit_all().require_present(*usage),
    )  # fmt: skip
    leaf = x509.load_der_x509_certificate(document.certificate)
    chain = policy.build_client_verifier().verify(leaf, between).chain
    assert [document.certificate, *reversed(document.cabundle)] == [
        c.public_bytes(Encoding.DER) for c in chain
    ]


@each_real
def test_every_single_byte_matters(aws, meta, record_property):
    """One bit of each byte of the whole message: header, payload with its certificates, signature."""
    raw = bytearray(read(meta))
    for index in range(len(raw)):
        raw[index] ^= 1 << (index % 8)
        refused(aws, bytes(raw), at(meta))
        raw[index] ^= 1 << (index % 8)
    aws.verify(bytes(raw), at(meta))
    record_property("figure", f"bit flips refused, {meta['file']}: {len(raw)} of {len(raw)}")


def changes_of(raw: bytes) -> dict[str, bytes]:
    """Every change by name. Those that keep the payload's meaning break the signature all the same."""
    protected, unprotected, payload, signature = parts(raw)
    fields = parts(payload)
    r, s = signature[:48], signature[48:]

    def message(**new) -> bytes:
        whole = {
            "protected": protected,
            "unprotected": unprotected,
            "payload": payload,
            "signature": signature,
        }
        return cbor.encode(list((whole | new).values()))

    def field(**new) -> bytes:
        return message(payload=cbor.encode(fields | new))

    def without(name) -> bytes:
        return message(payload=cbor.encode({k: v for k, v in fields.items() if k != name}))

    bundle, leaf = fields["cabundle"], fields["certificate"]
    indefinite = (
        b"\xbf" + b"".join(cbor.encode(k) + cbor.encode(v) for k, v in fields.items()) + b"\xff"
    )
    definite = cbor.encode(fields)
    twice = b"\xbf" + indefinite[1:-1] + cbor.encode("digest") + cbor.encode("SHA384") + b"\xff"
    found = {
        "empty": b"",
        "only a tag": b"\xd2",
        "tagged twice": b"\xd2\xd2" + raw,
        "another tag": b"\xd1" + raw,
        "a byte more": raw + b"\0",
        "itself again": raw + raw,
        "a byte less": raw[:-1],
        "half": raw[: len(raw) // 2],
        "too long": raw + bytes(MAX_DOCUMENT_BYTES),
        "an array of five": b"\x85" + raw[1:] + b"\xf6",
        "an indefinite array": b"\x9f" + raw[1:] + b"\xff",
        "unprotected header": message(unprotected={1: -35}),
        "unprotected kid": message(unprotected={4: b"kid"}),
        "no algorithm": message(protected=cbor.encode({})),
        "algorithm ES256": message(protected=cbor.encode({1: -7})),
        "algorithm none": message(protected=cbor.encode({1: -1})),
        "algorithm EdDSA": message(protected=cbor.encode({1: -8})),
        "critical header": message(protected=cbor.encode({1: -35, 2: [42]})),
        "header twice": message(protected=b"\xa2\x01\x38\x22\x01\x38\x22"),
        "header with trailing bytes": message(protected=protected + b"\0"),
        "empty header": message(protected=b""),
        "signature zero": message(signature=bytes(96)),
        "signature ff": message(signature=b"\xff" * 96),
        "signature swapped": message(signature=s + r),
        "signature short": message(signature=signature[:95]),
        "signature long": message(signature=signature + b"\0"),
        "signature empty": message(signature=b""),
        "s plus order": message(signature=r + (int.from_bytes(s, "big") + P384_ORDER).to_bytes(49, "big")[-48:]),
        "payload empty": message(payload=b""),
        "payload null": message(payload=b"\xf6"),
        "payload an array": message(payload=cbor.encode(list(fields.values()))),
        "payload trailing bytes": message(payload=payload + b"\0"),
        "the other length form": message(payload=definite if payload[0] == 0xBF else indefinite),
        "a key twice": message(payload=twice),
        "fields in another order": message(payload=cbor.encode(dict(reversed(fields.items())))),
        "unknown field": field(extra=1),
        "NitroTPM's field": message(payload=cbor.encode({("nitrotpm_pcrs" if k == "pcrs" else k): v for k, v in fields.items()})),
        "PCR0 changed": field(pcrs=fields["pcrs"] | {0: measured("other")}),
        "PCR0 zero": field(pcrs=fields["pcrs"] | {0: b"\x01" * 48}),
        "PCR4 changed": field(pcrs=fields["pcrs"] | {4: measured("other")}),
        "PCR too short": field(pcrs=fields["pcrs"] | {0: b"\x01" * 32}),
        "PCR index 32": field(pcrs=fields["pcrs"] | {32: b"\x01" * 48}),
        "PCR index negative": field(pcrs=fields["pcrs"] | {-1: b"\x01" * 48}),
        "PCR index a text": field(pcrs=fields["pcrs"] | {"0": b"\x01" * 48}),
        "PCRs empty": field(pcrs={}),
        "PCR0 missing": field(pcrs={k: v for k, v in fields["pcrs"].items() if k != 0}),
        "PCRs an array": field(pcrs=[*fields["pcrs"].values()]),
        "public key changed": field(public_key=b"\x01" * 32),
        "public key empty": field(public_key=b""),
        "public key long": field(public_key=bytes(1_025)),
        "public key a text": field(public_key="key"),
        "user data changed": field(user_data=b"other"),
        "user data long": field(user_data=bytes(1_025)),
        "nonce changed": field(nonce=b"other"),
        "nonce a number": field(nonce=1),
        "module id empty": field(module_id=""),
        "module id of a TPM": field(module_id="i-0abc-tpm0def"),
        "module id with more": field(module_id=fields["module_id"] + "\n"),
        "digest SHA256": field(digest="SHA256"),
        "timestamp zero": field(timestamp=0),
        "timestamp negative": field(timestamp=-1),
        "timestamp true": field(timestamp=True),
        "timestamp giant": field(timestamp=2**63),
        "timestamp later": field(timestamp=fields["timestamp"] + 1),
        "certificate empty": field(certificate=b""),
        "certificate long": field(certificate=leaf + bytes(1_024)),
        "certificate trailing byte": field(certificate=leaf + b"\0"),
        "certificate is its issuer": field(certificate=bundle[-1]),
        "cabundle empty": field(cabundle=[]),
        "cabundle a map": field(cabundle={0: bundle[0]}),
        "cabundle reversed": field(cabundle=bundle[::-1]),
        "cabundle root twice": field(cabundle=[bundle[0], *bundle]),
        "cabundle of nine": field(cabundle=bundle + bundle + bundle),
        "cabundle with the leaf": field(cabundle=[*bundle, leaf]),
        "only the root": field(cabundle=bundle[:1]),
    }  # fmt: skip
    for name in ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"):
        found[f"without {name}"] = without(name)
    for index in range(len(bundle)):
        found[f"certificate {index} dropped"] = field(
            cabundle=bundle[:index] + bundle[index + 1 :]
        )
        swapped = list(bundle)
        other = (index + 1) % len(bundle)
        swapped[index], swapped[other] = swapped[other], swapped[index]
        found[f"certificates {index} and {other} swapped"] = field(cabundle=swapped)
    return found


@each_real
def test_every_change_is_refused_with_a_reason(meta, record_property):
    warm, raw = Verifier(AWS_NITRO_ROOT_G1), read(meta)
    warm.verify(raw, at(meta))
    found = changes_of(raw)
    for name, changed in found.items():
        assert changed != raw, name
        # A verifier that remembers certificates must judge as one that has never seen any.
        assert refused(warm, changed, at(meta)), name
        assert refused(Verifier(AWS_NITRO_ROOT_G1), changed, at(meta)), name
    record_property(
        "figure", f"named changes refused, {meta['file']}: {len(found)} of {len(found)}"
    )


def test_parts_of_different_real_documents_do_not_fit_together(aws, record_property):
    tried = 0
    for meta in DOCUMENTS:
        for other in DOCUMENTS:
            if meta is other:
                continue
            mine, theirs = parts(read(meta)), parts(read(other))
            for index in (2, 3):
                mixed = [*mine[:index], theirs[index], *mine[index + 1 :]]
                refused(aws, cbor.encode(mixed), at(meta))
                tried += 1
            fields, foreign = parts(mine[2]), parts(theirs[2])
            for name in ("certificate", "cabundle"):
                if fields[name] == foreign[name]:
                    continue
                payload = cbor.encode(fields | {name: foreign[name]})
                refused(aws, cbor.encode([mine[0], {}, payload, mine[3]]), at(meta))
                tried += 1
    record_property("figure", f"splices of two real documents refused: {tried} of {tried}")


@each_real
def test_ecdsa_is_malleable_so_nothing_takes_a_hash_for_an_identity(aws, meta):
    protected, _, payload, signature = parts(read(meta))
    s = P384_ORDER - int.from_bytes(signature[48:], "big")
    other = cbor.encode([protected, {}, payload, signature[:48] + s.to_bytes(48, "big")])

    assert other != read(meta)
    assert aws.verify(read(meta), at(meta)) == aws.verify(other, at(meta))


def test_a_root_with_the_same_subject_and_serial_number_is_not_the_root(aws):
    """The forgery that takes in verifiers which compare names or serial numbers."""
    real = x509.load_der_x509_certificate(AWS_NITRO_ROOT_G1.der)
    key = ec.generate_private_key(ec.SECP384R1())
    forged = (
        x509.CertificateBuilder(real.subject, real.subject, key.public_key(), real.serial_number)
        .not_valid_before(real.not_valid_before_utc)
        .not_valid_after(real.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(real.extensions.get_extension_for_class(x509.KeyUsage).value, True)
        .sign(key, hashes.SHA384())
    )
    authority = DevAuthority(NOW, KeyAndCertificate(key, forged))
    hardware = Hardware(authority)
    raw = hardware.document(b"k" * 32, PCRS)

    assert hardware.verifier.verify(raw, NOW), "it is a good document but for its root"
    assert "does not begin with the trusted root" in refused(aws, raw, NOW)
    _, document = decode_document_untrusted(raw)
    pasted = replace(document, cabundle=(AWS_NITRO_ROOT_G1.der, *document.cabundle))
    assert "signature does not hold" in refused(aws, sign_document(hardware.leaf, pasted), NOW)
    bundle = (AWS_NITRO_ROOT_G1.der, *document.cabundle[1:])
    instead = sign_document(hardware.leaf, replace(document, cabundle=bundle))
    assert "signature does not hold" in refused(aws, instead, NOW)


# -- documents of the tests' own hardware: well signed, and wrong ---------------------------------------


def test_the_nonce_must_be_answered():
    verifier = HARDWARE.verifier
    raw = HARDWARE.document(b"k" * 32, PCRS, nonce=b"n" * 32)
    assert verifier.verify(raw, NOW, nonce=b"n" * 32)
    assert "nonce" in refused(verifier, raw, NOW, nonce=b"m" * 32)
    bare = HARDWARE.document(b"k" * 32, PCRS)
    assert "nonce" in refused(verifier, bare, NOW, nonce=b"n" * 32)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"timestamp_ms": (NOW + 301) * 1_000}, "future"),
        ({"timestamp_ms": (NOW - 3_600) * 1_000}, "outside its certificates"),
        ({"timestamp_ms": (NOW + 9 * 3_600) * 1_000}, "outside its certificates"),
        ({"module_id": "i-0a-tpm0b"}, "module_id"),
        ({"module_id": "dev-0a-enc0b"}, "module_id"),
        ({"module_id": "i-0a-enc0b.evil"}, "module_id"),
        ({"public_key": b"x" * 1_025}, "public_key"),
        ({"user_data": b"x" * 1_025}, "user_data"),
        ({"nonce": b"x" * 1_025}, "nonce"),
    ],
)
def test_well_signed_but_not_as_it_must_be(changes, why):
    assert why in refused(HARDWARE.verifier, HARDWARE.document(b"k" * 32, PCRS, **changes), NOW)


@pytest.mark.parametrize("size", [512, 1_024])
def test_fields_of_older_and_newer_size_are_taken(size):
    fields = {"user_data": bytes(size), "nonce": bytes(size), "public_key": bytes(size)}
    document = HARDWARE.document(b"k", PCRS, **fields)
    assert HARDWARE.verifier.verify(document, NOW).document.nonce == bytes(size)


@pytest.mark.parametrize("zero", [(0,), (1,), (2,), (0, 1, 2)])
def test_zero_registers_are_debug(zero):
    pcrs = PCRS | dict.fromkeys(zero, bytes(48))
    assert HARDWARE.verifier.verify(HARDWARE.document(b"k", pcrs), NOW).is_debug
    assert not HARDWARE.verifier.verify(HARDWARE.document(b"k", PCRS), NOW).is_debug


def chain_document(authority, leaf, **changes):
    hardware = Hardware(authority)
    hardware.leaf = leaf
    return hardware.verifier, hardware.document(b"k", PCRS, **changes)


@pytest.mark.parametrize(
    ("life", "why"),
    [(lambda a: issue_leaf(a.cas[-1], "leaf", NOW - 4 * 3600), "has expired"),
     (lambda a: issue_leaf(a.cas[-1], "leaf", NOW + 400), "not valid yet"),
     (lambda a: issue_ca(a.cas[-1], "leaf", None, 1, NOW), "leaf is a CA"),
     (lambda a: issue_leaf(a.cas[-2], "leaf", NOW), "another issuer"),
     (lambda a: issue_leaf(KeyAndCertificate(make_root(NOW).key, a.cas[-1].certificate), "leaf", NOW), "signature does not hold")],
)  # fmt: skip
def test_bad_leaves(life, why):
    authority = HARDWARE.authority
    verifier, raw = chain_document(authority, life(authority))
    assert why in refused(verifier, raw, NOW)


def test_a_leaf_signs_no_certificates_and_paths_are_no_longer_than_allowed():
    authority = DevAuthority(NOW)
    leaf = authority.leaf("mid", NOW)
    under_leaf = issue_leaf(leaf, "y", NOW)
    bundle = (*authority.cabundle, leaf.der)
    verifier, raw = chain_document(authority, under_leaf, cabundle=bundle)
    assert "longer than a certificate in it allows" in refused(verifier, raw, NOW)
    extra = issue_ca(authority.cas[-1], "extra", None, 1, NOW)
    verifier, raw = chain_document(
        authority, issue_leaf(extra, "y", NOW), cabundle=(*authority.cabundle, extra.der)
    )
    assert "longer than a certificate in it allows" in refused(verifier, raw, NOW)
    direct = issue_leaf(authority.root, "y", NOW)
    verifier, raw = chain_document(authority, direct, cabundle=(authority.root.der,))
    assert verifier.verify(raw, NOW), "a shorter path is a path"
    verifier, raw = chain_document(authority, authority.root, cabundle=(authority.root.der,))
    assert "stands twice" in refused(verifier, raw, NOW)


@pytest.mark.parametrize("kind", ["curve", "hash", "extension", "constraints", "usage"])
def test_certificates_of_another_profile(kind):
    authority = HARDWARE.authority
    parent, now = authority.cas[-1], datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    curve = ec.SECP256R1() if kind == "curve" else ec.SECP384R1()
    key = ec.generate_private_key(curve)
    usage = issue_leaf(parent, "x", NOW).certificate.extensions.get_extension_for_class(
        x509.KeyUsage
    )
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "odd")])
    builder = (
        x509.CertificateBuilder(parent.certificate.subject, name, key.public_key(), 7)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(hours=1))
    )
    if kind != "constraints":
        builder = builder.add_extension(x509.BasicConstraints(False, None), True)
    if kind != "usage":
        builder = builder.add_extension(usage.value, False)
    if kind == "extension":
        odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
        builder = builder.add_extension(odd, critical=True)
    digest = hashes.SHA256() if kind == "hash" else hashes.SHA384()
    certificate = builder.sign(parent.key, digest)
    verifier, raw = chain_document(authority, KeyAndCertificate(key, certificate))
    why = {
        "curve": "P-384", "hash": "SHA-384", "extension": "critical extension",
        "constraints": "lacks basicConstraints", "usage": "lacks basicConstraints",
    }  # fmt: skip
    assert why[kind] in refused(verifier, raw, NOW)


# Extensions on which the parser fails with exceptions of every family, or that it does not know.
ODD_EXTENSIONS = {
    "2.5.29.17": ("3002a300", "3002a500", "ff", "3003870101"),
    "2.5.29.18": ("3002a300",),
    "2.5.29.31": ("30083006a004a002a300",),
    "2.5.29.35": ("3004a102a300",),
    "2.5.29.30": ("3006a0043002a300",),
    "1.3.6.1.5.5.7.1.1": ("300e300c06082b06010505073001a300",),
    "1.3.6.1.5.5.7.1.24": ("3003020107",),
    "2.5.29.15": ("030100",),
    "2.5.29.54": ("0201ff",),
}


@pytest.mark.parametrize(
    ("oid", "value"), [(o, v) for o, values in ODD_EXTENSIONS.items() for v in values]
)
@pytest.mark.parametrize("signed", [True, False], ids=["by the chain", "by a stranger"])
def test_odd_extensions_raise_nothing_of_their_own(oid, value, signed):
    parent, now = HARDWARE.authority.cas[-1], datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    key = ec.generate_private_key(ec.SECP384R1())
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), bytes.fromhex(value))
    certificate = (
        x509.CertificateBuilder(
            parent.certificate.subject, parent.certificate.subject, key.public_key(), 7
        )
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(odd, critical=False)
        .sign(parent.key if signed else key, hashes.SHA384())
    )
    verifier, raw = chain_document(HARDWARE.authority, KeyAndCertificate(key, certificate))
    assert refused(verifier, raw, NOW)


def test_what_is_remembered_is_forgotten_in_time_and_holds_nowhere_else():
    """Signatures that held are remembered; validity, place and parent are judged anew."""
    verifier, raw = HARDWARE.verifier, HARDWARE.document(b"k", PCRS)
    for _ in range(3):
        verifier.verify(raw, NOW)
    assert "has expired" in refused(verifier, raw, NOW + 4 * 3600)
    assert "not valid yet" in refused(verifier, raw, NOW - 400)
    _, document = decode_document_untrusted(raw)
    for dropped in range(1, len(document.cabundle)):
        bundle = document.cabundle[:dropped] + document.cabundle[dropped + 1 :]
        moved = sign_document(HARDWARE.leaf, replace(document, cabundle=bundle))
        refused(verifier, moved, NOW)
    as_ca = replace(document, certificate=document.cabundle[-1], cabundle=document.cabundle[:-1])
    instance = HARDWARE.authority.cas[-1]
    assert "leaf is a CA" in refused(verifier, sign_document(instance, as_ca), NOW)


# -- revocation -----------------------------------------------------------------------------------------


def crl(issuer: KeyAndCertificate, serials, *, begins=NOW - 10, ends=NOW + 10, key=None):
    def when(at):
        return datetime.datetime.fromtimestamp(at, datetime.UTC)

    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(when(begins))
        .next_update(when(ends))
    )
    for serial in serials:
        revoked = (
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when(NOW - 5))
        )
        builder = builder.add_revoked_certificate(revoked.build())
    return builder.sign(key or issuer.key, hashes.SHA384()).public_bytes(Encoding.DER)


def test_revocation_lists():
    verifier, raw, cas = HARDWARE.verifier, HARDWARE.document(b"k", PCRS), HARDWARE.authority.cas
    leaf_serial = HARDWARE.leaf.certificate.serial_number
    anchor = verifier.anchor
    assert Verifier(anchor, [crl(cas[-1], [leaf_serial + 1])]).verify(raw, NOW)
    early = crl(cas[-1], [], begins=NOW + 300, ends=NOW + 400)
    assert Verifier(anchor, [early]).verify(raw, NOW), "its maker's clock may run ahead of ours"
    cases = {
        "is revoked": crl(cas[-1], [leaf_serial]),
        "revoked": crl(cas[0], [cas[1].certificate.serial_number]),
        "has expired": crl(cas[-1], [], ends=NOW - 1),
        "not valid yet": crl(cas[-1], [], begins=NOW + 301, ends=NOW + 400),
        "not by a certificate of this chain": crl(make_root(NOW, "other"), []),
        "not by a certificate": crl(cas[-1], [], key=make_root(NOW).key),
        "does not parse": b"garbage",
        "more than": bytes(1 << 21),
    }
    for why, raw_crl in cases.items():
        assert why in refused(Verifier(anchor, [raw_crl]), raw, NOW)
    whole = crl(cas[-1], [leaf_serial])
    for index in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[index] ^= 1 << (index % 8)
        refused(Verifier(anchor, [bytes(changed)]), raw, NOW)
    # The same serial number under another issuer is another certificate.
    assert Verifier(anchor, [crl(cas[0], [leaf_serial])]).verify(raw, NOW)
    assert "more than 8" in refused(Verifier(anchor, [b""] * 9), raw, NOW)


# -- anchors --------------------------------------------------------------------------------------------


def test_what_a_development_root_vouches_for_is_debug_and_is_never_taken_for_aws(aws):
    development = Hardware(HARDWARE.authority, is_development=True)
    attested = development.verifier.verify(development.document(b"k", PCRS), NOW)
    assert attested.is_debug
    assert attested.anchor.trust.startswith("development:")
    refused(aws, development.document(b"k", PCRS), NOW)
    refused(Verifier(Anchor(make_root(NOW).der, True)), development.document(b"k", PCRS), NOW)
    # Production module ids under a development root, and the other way round.
    refused(development.verifier, HARDWARE.document(b"k", PCRS), NOW)
    refused(HARDWARE.verifier, development.document(b"k", PCRS), NOW)


def test_a_development_anchor_is_named_explicitly_and_is_not_awss():
    pem = HARDWARE.authority.root.certificate.public_bytes(Encoding.PEM)
    assert development_anchor(pem) == development_anchor(HARDWARE.authority.root.der)
    for bad in (AWS_NITRO_ROOT_G1.der, b"", b"-----BEGIN CERTIFICATE-----\n", b"\x30\x00"):
        with pytest.raises(BadAttestation):
            development_anchor(bad)


def test_documents_that_qemu_makes_are_unsigned_and_refused(aws):
    pcrs = {i: bytes(48) for i in range(16)}
    fields = {"module_id": "i-0a-enc0b", "digest": "SHA384", "timestamp": NOW * 1_000, "pcrs": pcrs,
              "certificate": bytes(64), "cabundle": [bytes(64)], "public_key": None, "user_data": None, "nonce": None}  # fmt: skip
    for algorithm in (-1, -35):
        raw = cbor.encode([cbor.encode({1: algorithm}), {}, cbor.encode(fields), bytes(96)])
        refused(aws, raw, NOW)


# -- any bytes ------------------------------------------------------------------------------------------

REAL = read(DOCUMENTS[0])


@given(st.binary(max_size=400))
def test_any_bytes(raw):
    with pytest.raises(BadAttestation):
        HARDWARE.verifier.verify(raw, NOW)


@given(st.data())
def test_real_documents_with_pieces_replaced(data):
    start = data.draw(st.integers(0, len(REAL)))
    end = data.draw(st.integers(start, min(len(REAL), start + 60)))
    changed = REAL[:start] + data.draw(st.binary(max_size=60)) + REAL[end:]
    if changed != REAL:
        with pytest.raises(BadAttestation):
            Verifier(AWS_NITRO_ROOT_G1).verify(changed, at(DOCUMENTS[0]))


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-5, 2**62)
    | st.binary(max_size=50)
    | st.text(max_size=9)
)
shapes = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers(2, 40) | st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(sorted(parts(parts(REAL)[2]))), shapes, max_size=9),
    st.booleans(),
)
def test_payloads_of_any_shape_that_are_well_signed(changes, complete):
    """Even the hardware's own key cannot make the verifier stumble."""
    base = parts(parts(HARDWARE.document(b"k", PCRS))[2]) if complete else {}
    try:
        raw = sign_payload(HARDWARE.leaf, cbor.encode(base | changes))
        HARDWARE.verifier.verify(raw, NOW)
    except BadAttestation:
        pass


@given(st.binary(max_size=1_024))
def test_certificates_of_any_bytes(der):
    _, document = decode_document_untrusted(HARDWARE.document(b"k", PCRS))
    for changed in ({"certificate": der}, {"cabundle": (document.cabundle[0], der)}):
        if all(changed.values()) and der:
            refused(
                HARDWARE.verifier, sign_document(HARDWARE.leaf, replace(document, **changed)), NOW
            )


def test_reading_back_what_was_encoded():
    raw = HARDWARE.document(b"k", PCRS)
    cose, document = decode_document_untrusted(raw)
    assert raw == cose.encoded()
    assert (Pcrs(PCRS), None) == (document.pcrs, document.pcrs.hex(31))
