"""NIP-17 private direct messages, sealed and wrapped as NIP-59 says.

A rumor (kind 14, unsigned) is sealed (kind 13) by its author and wrapped (kind 1059) under a key
made for that one event, so that a relay learns only who receives something.
"""

import secrets

import orjson

from nips import kinds, nip44
from nips.errors import BadCiphertext, BadEvent, BadInput
from nips.event import (
    Event,
    VerifiedEvent,
    event_id,
    parse_event_json_untrusted,
    sign_event,
    verify_event,
)
from nips.keys import SecretKey

TWO_DAYS_S = 2 * 24 * 3600


def wrap_message(author: SecretKey, receiver: str, text: str, now: int) -> VerifiedEvent:
    """A kind-1059 event for ``receiver``. Outer times are random within two days, the rumor's is true."""
    tags = (("p", receiver),)
    rumor = {
        "id": event_id(author.pubkey, now, kinds.CHAT, tags, text).hex(),
        "pubkey": author.pubkey,
        "created_at": now,
        "kind": kinds.CHAT,
        "tags": tags,
        "content": text,
    }
    sealed = nip44.encrypt(author, receiver, orjson.dumps(rumor).decode())
    seal = sign_event(author, kinds.SEAL, sealed, [], now - secrets.randbelow(TWO_DAYS_S))
    once = SecretKey.generate()
    wrapped = nip44.encrypt(once, receiver, seal.json.decode())
    return sign_event(once, kinds.GIFT_WRAP, wrapped, tags, now - secrets.randbelow(TWO_DAYS_S))


def unwrap_message_untrusted(key: SecretKey, wrap: Event) -> tuple[str, str, int]:
    """``(author, text, created_at)`` of a message for us. Raises `BadEvent` or `BadCiphertext`."""
    seal = parse_event_json_untrusted(nip44.decrypt_untrusted(key, wrap.pubkey, wrap.content))
    verify_event(seal)
    if seal.kind != kinds.SEAL:
        raise BadEvent("the wrap holds no seal")
    text = nip44.decrypt_untrusted(key, seal.pubkey, seal.content)
    try:
        rumor: object = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadCiphertext("the seal holds no JSON") from error
    match rumor:
        case {
            "pubkey": str(author),
            "content": str(content),
            "created_at": int(created_at),
            "kind": 14,
        }:
            # Without this check anybody could put words into another's mouth (NIP-17).
            if author != seal.pubkey:
                raise BadEvent("the rumor's author did not sign the seal")
            return author, content, created_at
        case _:
            raise BadInput("the seal holds no chat message")
