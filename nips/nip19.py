"""bech32 entities (NIP-19), by nostr-sdk's synchronous half: its word is the reference."""

from dataclasses import dataclass

import nostr_sdk

from nips.crypto import is_pubkey
from nips.errors import BadKey

MAX_LENGTH = 5_000


def npub(pubkey: str) -> str:
    """``npub1…`` for a hex public key."""
    text: str = nostr_sdk.PublicKey.parse(pubkey).to_bech32()
    return text


def nsec(secret: bytes) -> str:
    """``nsec1…``: a secret, for the one moment it is shown to its owner."""
    text: str = nostr_sdk.SecretKey.parse(secret.hex()).to_bech32()
    return text


def pubkey_from_npub_untrusted(text: str) -> str:
    """Hex from an ``npub1…``, an ``nprofile1…`` or 64 hex digits. Raises `BadKey`."""
    if len(text) > MAX_LENGTH:
        raise BadKey("too long for a public key")
    try:
        if text.startswith("nprofile1"):
            found = nostr_sdk.Nip19Profile.from_bech32(text).public_key().to_hex()
        else:
            found = nostr_sdk.PublicKey.parse(text).to_hex()
    except Exception as error:
        raise BadKey("not a public key: give an npub or 64 hex digits") from error
    # nostr-sdk takes 64 hex digits that are on no curve; ECDH with them would fail later.
    if not is_pubkey(found):
        raise BadKey("that public key is not a point on the curve")
    return str(found)


@dataclass(frozen=True)
class Pointer:
    """What an npub, nprofile, note or nevent points at; one of the two is given at least."""

    pubkey: str | None
    event_id: str | None
    relay_urls: tuple[str, ...]


def parse_pointer_untrusted(text: str) -> Pointer:
    """Raises `BadKey`."""
    text = text.strip().removeprefix("nostr:")
    if len(text) > MAX_LENGTH:
        raise BadKey("too long for an npub, nprofile or nevent")
    try:
        if text.startswith("nevent1"):
            event = nostr_sdk.Nip19Event.from_bech32(text)
            author = event.author()
            found = pubkey_from_npub_untrusted(author.to_hex()) if author is not None else None
            return Pointer(found, event.event_id().to_hex(), tuple(map(str, event.relays())))
        if text.startswith("note1"):
            return Pointer(None, nostr_sdk.EventId.parse(text).to_hex(), ())
        relays: tuple[str, ...] = ()
        if text.startswith("nprofile1"):
            relays = tuple(map(str, nostr_sdk.Nip19Profile.from_bech32(text).relays()))
    except Exception as error:
        raise BadKey("not an npub, nprofile, note or nevent") from error
    return Pointer(pubkey_from_npub_untrusted(text), None, relays)


def secret_from_nsec_untrusted(text: str) -> bytes:
    """The raw secret of an ``nsec1…``. Raises `BadKey`, which never repeats the text."""
    try:
        return bytes.fromhex(nostr_sdk.SecretKey.parse(text).to_hex())
    except Exception:  # noqa: BLE001 - as above; and the cause could carry the text, so it is cut off
        raise BadKey("not an nsec") from None
