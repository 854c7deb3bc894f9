"""Attestation documents of AWS Nitro Enclaves: decode, and verify up to a pinned root. Sans-IO.

A document is a COSE_Sign1 (RFC 9052) around a CBOR payload that the Nitro Security Module signs with
the key of a leaf certificate; the leaf's chain is in the payload. Format and limits: AWS, "Verifying
the root of trust"; order and lifetimes of the chain as measured on real documents.

The threats, each with its rule:

- A forger brings a chain of his own: the first certificate must *be* the anchor, byte for byte.
- Other products are signed under the same root (NitroTPM): unknown fields and other module ids end it.
- A debug enclave, readable by its host, gets honest documents with zero PCRs: `Pcrs.is_debug`.
- An old document is replayed: everything must hold at ``now`` (`lifetime`), and a nonce can be demanded.
- ECDSA is malleable: a hash of a document is no identity, so none is offered.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nips.errors import BadAttestation, BadCbor
from nips.tee import cbor
from nips.tee.anchor import Anchor
from nips.tee.cose import BadCose, CoseSign1, decode_sign1_untrusted
from nips.tee.lifetime import check_begun
from nips.tee.nitro_chain import Chain, ChainVerifier

MAX_DOCUMENT_BYTES = 16_640
MAX_PAYLOAD_BYTES = 16_384
MAX_CERTIFICATE_BYTES, MAX_CABUNDLE = 1_024, 8
MAX_FIELD_BYTES = 1_024
PCR_BYTES, PCR_COUNT = 48, 32
_COSE_SIGN1_TAG = 0xD2
_REQUIRED = frozenset({"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"})
_OPTIONAL = frozenset({"public_key", "user_data", "nonce"})
_ENCLAVE_ID = re.compile(r"i-[0-9a-f]{1,40}-enc[0-9a-f]{1,40}")
_DEVELOPMENT_ID = re.compile(r"dev-[0-9a-f]{1,40}-enc[0-9a-f]{1,40}")


@dataclass(frozen=True)
class Pcrs:
    """Platform configuration registers, SHA-384 each. 0: image, 1: kernel, 2: application,
    3: IAM role, 4: instance id, 8: signing certificate."""

    values: Mapping[int, bytes]

    def hex(self, index: int) -> str | None:
        """A register in hex, or None when the document does not hold it."""
        value = self.values.get(index)
        return value.hex() if value is not None else None

    @property
    def is_debug(self) -> bool:
        """Zero for any of PCR0 to PCR2: the host can read the enclave's console and memory.

        A hash is never zero, so one zero register is as telling as three.
        """
        return any(not any(self.values[index]) for index in (0, 1, 2))


@dataclass(frozen=True)
class Document:
    """What a document says. Nothing here is proved before `Verifier.verify`."""

    module_id: str
    timestamp_ms: int
    pcrs: Pcrs
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None

    @property
    def timestamp_s(self) -> int:
        """When the module signed, Unix seconds."""
        return self.timestamp_ms // 1_000


@dataclass(frozen=True)
class Attested:
    """A document that verified. Believe it until ``not_after`` (Unix seconds) and not a second longer,
    whatever a tag around it says: that is the earliest end in its whole chain."""

    document: Document
    anchor: Anchor
    not_before: int
    not_after: int
    leaf_not_after: int

    @property
    def pcrs(self) -> Pcrs:
        """The registers."""
        return self.document.pcrs

    @property
    def is_debug(self) -> bool:
        """True for zero PCRs, and for all that a development root vouches for."""
        return self.anchor.is_development or self.pcrs.is_debug


class Verifier:
    """Verifies documents against one anchor; remembers only certificate signatures that held.

    ``crls``: DER or PEM revocation lists by certificates of the chains; one that is not makes all fail.
    """

    def __init__(self, anchor: Anchor, crls: Sequence[bytes] = ()) -> None:
        self.anchor, self._crls = anchor, tuple(crls)
        self._chains = ChainVerifier(anchor.der)

    def verify(self, raw: bytes, now: int, *, nonce: bytes | None = None) -> Attested:
        """All of it, or `BadAttestation` with the reason.

        ``now``: Unix seconds at which everything must be valid. ``nonce``: what we challenged with.
        """
        cose, document = decode_document_untrusted(raw)
        self._check_module(document)
        ders = [*document.cabundle, document.certificate]
        chain = self._chains.verify(ders, now)
        chain.check_revocation(self._crls, now)
        _check_signature(chain, cose)
        _check_time(chain, document, now)
        if nonce is not None and document.nonce != nonce:
            raise BadAttestation("the document does not answer our nonce")
        return Attested(
            document, self.anchor, chain.not_before, chain.not_after, chain.leaf_not_after
        )

    def _check_module(self, document: Document) -> None:
        pattern = _DEVELOPMENT_ID if self.anchor.is_development else _ENCLAVE_ID
        if not pattern.fullmatch(document.module_id):
            raise BadAttestation("module_id is not an enclave's")


def _check_signature(chain: Chain, cose: CoseSign1) -> None:
    try:
        cose.verify(chain.leaf_key)
    except BadCose:
        raise BadAttestation("the document's signature does not hold") from None


def _check_time(chain: Chain, document: Document, now: int) -> None:
    if not chain.not_before <= document.timestamp_s <= chain.not_after:
        raise BadAttestation("the document's time is outside its certificates' validity")
    check_begun("the document", document.timestamp_s, now, BadAttestation)


def decode_document_untrusted(raw: bytes) -> tuple[CoseSign1, Document]:
    """Shape, types and limits; no signature is looked at. Raises `BadAttestation`."""
    if not 0 < len(raw) <= MAX_DOCUMENT_BYTES:
        raise BadAttestation(f"a document has 1 to {MAX_DOCUMENT_BYTES} bytes")
    try:
        cose = _decode_cose(raw)
        return cose, _document(cbor.decode_untrusted(cose.payload))
    except BadCbor as error:
        raise BadAttestation(f"not the CBOR of a document: {error}") from error


def _decode_cose(raw: bytes) -> CoseSign1:
    try:
        cose = decode_sign1_untrusted(raw[1:] if raw[0] == _COSE_SIGN1_TAG else raw)
    except BadCose as error:
        raise BadAttestation(str(error)) from None
    if not 0 < len(cose.payload) <= MAX_PAYLOAD_BYTES:
        raise BadAttestation(f"the payload is not of 1 to {MAX_PAYLOAD_BYTES} bytes")
    return cose


def _document(value: object) -> Document:
    if not isinstance(value, dict):
        raise BadAttestation("the payload is not a map")
    missing, unknown = _REQUIRED - value.keys(), value.keys() - _REQUIRED - _OPTIONAL
    if missing:
        raise BadAttestation(f"the payload lacks {min(missing)}")
    if unknown:
        # Documents of other products end under the same root; they carry other fields.
        raise BadAttestation("the payload has a field that enclaves' documents do not have")
    match value:
        case {"module_id": str(module_id), "digest": "SHA384", "timestamp": int(timestamp)}:
            pass
        case _:
            raise BadAttestation("module_id, digest or timestamp is not as it must be")
    if not module_id or isinstance(timestamp, bool) or not 0 < timestamp < 2**53:
        raise BadAttestation("module_id is empty, or timestamp is no time")
    cabundle = value["cabundle"]
    if not isinstance(cabundle, list) or not 1 <= len(cabundle) <= MAX_CABUNDLE:
        raise BadAttestation(f"cabundle is not a list of 1 to {MAX_CABUNDLE}")
    return Document(
        module_id,
        timestamp,
        _pcrs(value["pcrs"]),
        _certificate(value["certificate"]),
        tuple(map(_certificate, cabundle)),
        _field(value, "public_key", 1),
        _field(value, "user_data", 0),
        _field(value, "nonce", 0),
    )


def _pcrs(value: object) -> Pcrs:
    if not isinstance(value, dict) or not 3 <= len(value) <= PCR_COUNT:
        raise BadAttestation(f"pcrs is not a map of 3 to {PCR_COUNT}")
    pcrs: dict[int, bytes] = {}
    for index, digest in value.items():
        if not isinstance(index, int) or not 0 <= index < PCR_COUNT:
            raise BadAttestation("a PCR's index is not from 0 to 31")
        if not isinstance(digest, bytes) or len(digest) != PCR_BYTES:
            raise BadAttestation(f"PCR{index} is not of {PCR_BYTES} bytes")
        pcrs[index] = digest
    if not {0, 1, 2} <= pcrs.keys():
        raise BadAttestation("PCR0, PCR1 or PCR2 is missing")
    return Pcrs(pcrs)


def _certificate(value: object) -> bytes:
    if not isinstance(value, bytes) or not 1 <= len(value) <= MAX_CERTIFICATE_BYTES:
        raise BadAttestation(f"a certificate is not of 1 to {MAX_CERTIFICATE_BYTES} bytes")
    return value


def _field(payload: Mapping[str, object], name: str, least: int) -> bytes | None:
    # AWS's text allows no null; every real document writes absent fields as null.
    value = payload.get(name)
    if value is None:
        return None
    if not isinstance(value, bytes) or not least <= len(value) <= MAX_FIELD_BYTES:
        raise BadAttestation(f"{name} is not of {least} to {MAX_FIELD_BYTES} bytes")
    return value
