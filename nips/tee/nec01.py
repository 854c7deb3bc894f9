"""NEC-01: the attestation event (23793), a document signed for by the key that it names.

Never published alone: it travels as JSON text in ``tee_root`` tags. The document's ``public_key`` is the
event's pubkey, and the event's signature shows that the key is at home in the enclave.
"""

import base64
from dataclasses import dataclass

from nips import kinds
from nips.errors import BadAttestation
from nips.event import Event, VerifiedEvent, parse_event_json_untrusted, sign_event, verify_event
from nips.keys import SecretKey
from nips.nip40 import expiration_of
from nips.tee.attestation import Attested, Verifier
from nips.tee.env import BadEnv, Env, env_of

# Existing verifiers refuse longer ones.
MAX_BASE64 = 10_000


@dataclass(frozen=True)
class Root:
    """A verified attestation event: whose key, in which environment, by which document."""

    event: Event
    attested: Attested
    env: Env

    @property
    def pubkey(self) -> str:
        """The attested key."""
        return self.event.pubkey


def build_root(
    key: SecretKey, document: bytes, env: Env, expiration: int, now: int
) -> VerifiedEvent:
    """``expiration`` must not be later than the end of the document's certificates (`Attested`)."""
    tags = [
        ("-",),
        ("t", env.value),
        ("expiration", str(expiration)),
        ("alt", "attestation certificate by AWS Nitro Enclave"),
    ]
    return sign_event(key, kinds.ATTESTATION, base64.b64encode(document).decode(), tags, now)


def verify_root(text: str, verifier: Verifier, now: int, *, nonce: bytes | None = None) -> Root:
    """Everything that a ``tee_root`` must fulfil by itself. Raises `BadInput`."""
    event = parse_event_json_untrusted(text)
    if event.kind != kinds.ATTESTATION:
        raise BadAttestation("tee_root is not of kind 23793")
    verify_event(event)
    attested = verifier.verify(document_of(event.content), now, nonce=nonce)
    check_public_key(attested, event.pubkey)
    check_expiration(event, attested, now)
    env = env_of(event)
    check_env(env, attested)
    return Root(event, attested, env)


def document_of(content: str) -> bytes:
    """The document in an event's content (base64). Raises `BadAttestation`."""
    if not 0 < len(content) <= MAX_BASE64:
        raise BadAttestation(f"the document is not of 1 to {MAX_BASE64} base64 digits")
    try:
        return base64.b64decode(content, validate=True)
    except ValueError as error:  # binascii's own, and that of text which is not ASCII
        raise BadAttestation("the document is not base64") from error


def check_public_key(attested: Attested, pubkey: str) -> None:
    """A document names one key: a stolen one proves nothing about the thief's. Raises `BadAttestation`."""
    if attested.document.public_key != bytes.fromhex(pubkey):
        raise BadAttestation("the document is about another public key")


def check_expiration(event: Event, attested: Attested, now: int) -> None:
    """The tag must be there, in the future, and within the leaf's life. Raises `BadAttestation`."""
    expiration = expiration_of(event)
    if expiration is None or expiration <= now:
        raise BadAttestation("the expiration has passed, or there is none")
    if expiration > attested.leaf_not_after:
        raise BadAttestation("the expiration is beyond the end of the leaf certificate")


def check_env(env: Env, attested: Attested) -> None:
    """``t`` must be what the evidence allows. Raises `BadEnv`."""
    if attested.is_debug != (env is Env.DEBUG):
        proved = "debug" if attested.is_debug else "not debug"
        raise BadEnv(f"t says {env.value}, but the evidence says {proved}")
