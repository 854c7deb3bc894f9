"""LNURL-pay (LUD-06, LUD-16): the two JSON answers of a lightning address."""

import hashlib

import orjson


def metadata(name: str, address: str) -> str:
    """The metadata string that an invoice without a zap request commits to."""
    return orjson.dumps([["text/plain", f"Top up {name}"], ["text/identifier", address]]).decode()


def metadata_hash(text: str) -> str:
    """SHA-256 of the metadata, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def pay_request(
    *, callback: str, min_msat: int, max_msat: int, text: str, nostr_pubkey: str
) -> dict[str, object]:
    """The first answer: how much may be paid, and where to ask for the invoice."""
    return {
        "tag": "payRequest",
        "callback": callback,
        "minSendable": min_msat,
        "maxSendable": max_msat,
        "metadata": text,
        "commentAllowed": 0,
        "allowsNostr": True,
        "nostrPubkey": nostr_pubkey,
    }


def invoice_answer(bolt11: str) -> dict[str, object]:
    """The second answer: the invoice."""
    return {"pr": bolt11, "routes": []}


def error_answer(reason: str) -> dict[str, object]:
    """LUD-01: every error is status 200 with this body."""
    return {"status": "ERROR", "reason": reason}
