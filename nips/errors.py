"""The one family of exceptions that hostile bytes can raise."""


class BadInput(ValueError):
    """Bytes from outside do not mean what they should; the message is fit for the sender."""


class BadEvent(BadInput):
    """A Nostr event is malformed, or its id or signature does not hold (NIP-01)."""


class BadFilter(BadInput):
    """A subscription filter is malformed (NIP-01)."""


class BadMessage(BadInput):
    """A client or relay message is malformed (NIP-01)."""


class BadCiphertext(BadInput):
    """An encrypted payload cannot be opened by this key (NIP-04, NIP-44)."""


class BadKey(BadInput):
    """A key, npub, nsec or URI does not parse (NIP-19)."""


class BadRequest(BadInput):
    """A decrypted RPC, wallet or zap request has the wrong shape."""


class BadInvoice(BadInput):
    """A BOLT-11 invoice is malformed or is not the one that was asked for."""


class BadCbor(BadInput):
    """Bytes are not the strict CBOR that we read (RFC 8949)."""


class BadAttestation(BadInput):
    """An attestation document or its certificates do not prove what they should."""


class BadCertificate(BadInput):
    """A certificate event or a builder's X.509 certificate does not hold (NEC-03, 23797)."""
