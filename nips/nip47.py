"""NIP-47 Nostr Wallet Connect: connection URIs, requests, responses, notifications.

Both sides are here: the client's (ours) and the service's, which the development wallet speaks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import nostr_sdk
import orjson

from nips import kinds, nip04, nip44
from nips.errors import BadCiphertext, BadKey, BadRequest
from nips.event import Event, Tag, VerifiedEvent, sign_event
from nips.keys import SecretKey


class WalletCode(Enum):
    """Error codes of NIP-47; a code we do not know reads as OTHER."""

    RATE_LIMITED = "RATE_LIMITED"
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
    INSUFFICIENT_BALANCE = "INSUFFICIENT_BALANCE"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    RESTRICTED = "RESTRICTED"
    UNAUTHORIZED = "UNAUTHORIZED"
    INTERNAL = "INTERNAL"
    UNSUPPORTED_ENCRYPTION = "UNSUPPORTED_ENCRYPTION"
    PAYMENT_FAILED = "PAYMENT_FAILED"
    NOT_FOUND = "NOT_FOUND"
    OTHER = "OTHER"

    @classmethod
    def parse(cls, text: str, default: "WalletCode | None" = None) -> "WalletCode":
        """The code with that name, or ``default`` (OTHER)."""
        return cls.__members__.get(text, default or cls.OTHER)


@dataclass(frozen=True)
class WalletUri:
    """Where the wallet is and the key that we are known by there. The key cannot be printed."""

    wallet_pubkey: str
    relay_urls: tuple[str, ...]
    key: SecretKey = field(repr=False)


def parse_uri(text: str) -> WalletUri:
    """From ``nostr+walletconnect://…``. Raises `BadKey`, which never repeats the text: it is a secret."""
    try:
        uri = nostr_sdk.NostrWalletConnectUri.parse(text)
        secret = bytes.fromhex(uri.secret().to_hex())
        relays = tuple(str(relay).rstrip("/") for relay in uri.relays())
        return WalletUri(uri.public_key().to_hex(), relays, SecretKey(secret))
    except Exception:  # noqa: BLE001 - one class with many meanings; the cause could carry the secret
        raise BadKey("not a nostr+walletconnect:// URI") from None


def format_uri(wallet_pubkey: str, relay_url: str, key: SecretKey) -> str:
    """The URI that hands ``key``'s wallet to somebody: a secret."""
    from urllib.parse import quote

    secret = key.reveal_secret().hex()
    return (
        f"nostr+walletconnect://{wallet_pubkey}?relay={quote(relay_url, safe='')}&secret={secret}"
    )


@dataclass(frozen=True)
class WalletAbilities:
    """What a wallet's info event (13194) announces."""

    methods: frozenset[str]
    nip44: bool

    @property
    def per_container(self) -> bool:
        """The nwc-enclaved extension: every pubkey is a wallet, and anybody may ask for its invoice."""
        return {"make_invoice_for", "add_pubkey"} <= self.methods


def parse_wallet_info(event: Event) -> WalletAbilities:
    """From a verified 13194 event. A wallet that names no encryption knows only NIP-04."""
    methods = frozenset(event.content.split())
    encryption = (event.tag("encryption") or "nip04").split()
    return WalletAbilities(methods, "nip44_v2" in encryption)


def build_request(
    key: SecretKey,
    wallet_pubkey: str,
    method: str,
    params: dict[str, object],
    *,
    now: int,
    valid_s: int,
    use_nip44: bool,
) -> VerifiedEvent:
    """A 23194 event. After ``valid_s`` the wallet must ignore it, which bounds what UNKNOWN can mean."""
    text = orjson.dumps({"method": method, "params": params}).decode()
    tags: list[Tag] = [("p", wallet_pubkey), ("expiration", str(now + valid_s))]
    if use_nip44:
        tags.append(("encryption", "nip44_v2"))
        content = nip44.encrypt(key, wallet_pubkey, text)
    else:
        content = nip04.encrypt(key, wallet_pubkey, text)
    return sign_event(key, kinds.WALLET_REQUEST, content, tags, now)


@dataclass(frozen=True)
class WalletReply:
    """A decrypted response: a result, or a code with a text."""

    result_type: str
    result: dict[str, object] | None
    code: WalletCode | None
    message: str


@dataclass(frozen=True)
class WalletNotification:
    """A decrypted notification: a hint to look. ``transaction`` is what it tells of, as the wallet has it."""

    kind: str
    payment_hash: str
    transaction: dict[str, object]


def open_reply_untrusted(key: SecretKey, event: Event) -> WalletReply:
    """From a verified 23195 event by the wallet. Raises `BadCiphertext` or `BadRequest`."""
    match _open(key, event.pubkey, event.content):
        case {"error": {"code": str(code), **rest}, **more}:
            kind, text = more.get("result_type"), rest.get("message")
            message = text[:200] if isinstance(text, str) else ""
            return WalletReply(
                kind if isinstance(kind, str) else "", None, _code(code, message), message
            )
        case {"result_type": str(result_type), "result": dict(result)}:
            return WalletReply(result_type, result, None, "")
        case _:
            raise BadRequest("not a wallet response")


def _code(code: str, message: str) -> WalletCode:
    """nwc-enclaved answers everything it throws as INTERNAL and puts the true code into the message."""
    said = WalletCode.parse(code)
    return WalletCode.parse(message, said) if said is WalletCode.INTERNAL else said


def open_notification_untrusted(key: SecretKey, event: Event) -> WalletNotification:
    """From a verified 23196 or 23197 event by the wallet. Raises `BadCiphertext` or `BadRequest`."""
    match _open(key, event.pubkey, event.content):
        case {
            "notification_type": str(kind),
            "notification": {"payment_hash": str(payment_hash), **transaction},
        }:
            told: dict[str, object] = {str(name): value for name, value in transaction.items()}
            return WalletNotification(kind, payment_hash, told | {"payment_hash": payment_hash})
        case _:
            raise BadRequest("not a wallet notification")


def open_request_untrusted(key: SecretKey, event: Event) -> tuple[str, dict[str, object]]:
    """The service's side: ``(method, params)`` of a verified 23194 event."""
    match _open(key, event.pubkey, event.content):
        case {"method": str(method), "params": dict(params)}:
            return method, params
        case {"method": str(method)}:
            return method, {}
        case _:
            raise BadRequest("not a wallet request")


def seal(key: SecretKey, pubkey: str, value: Mapping[str, object], *, use_nip44: bool) -> str:
    """The service's side: JSON, encrypted as the request was."""
    text = orjson.dumps(value).decode()
    return nip44.encrypt(key, pubkey, text) if use_nip44 else nip04.encrypt(key, pubkey, text)


def _open(key: SecretKey, pubkey: str, content: str) -> object:
    opener = nip04 if nip04.is_nip04(content) else nip44
    text = opener.decrypt_untrusted(key, pubkey, content)
    try:
        value: object = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadCiphertext("the payload holds no JSON") from error
    return value
