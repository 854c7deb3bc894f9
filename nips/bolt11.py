"""BOLT-11 invoices: the library decodes, we do not take its word.

bolt11 2.2.0 is lax where money is at stake (it reads ``lnbcrt1.5u…`` as one whole bitcoin, rounds
sub-millisatoshi amounts, takes mixed case), so the readable part is checked by our own strict grammar
first and every field is compared with what was asked for.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass

import bolt11 as _lib

from nips.errors import BadInvoice

MAX_LENGTH = 4_096
MAX_AMOUNT_MSAT = 21_000_000 * 100_000_000 * 1_000
_PREFIX = re.compile(r"ln(bcrt|bc|tbs|tb)(?:([1-9][0-9]{0,17})([munp]?))?", re.ASCII)
# One bitcoin is 10^11 msat.
_MSAT = {"": 10**11, "m": 10**8, "u": 10**5, "n": 10**2}


@dataclass(frozen=True)
class Invoice:
    """What an invoice says. Hashes and ``payee`` are hex; times are Unix seconds."""

    bolt11: str
    currency: str
    amount_msat: int | None
    payment_hash: str
    payee: str
    description: str | None
    description_hash: str | None
    created_at: int
    expires_at: int


def decode_invoice_untrusted(text: str) -> Invoice:
    """Decode, checksum, recover the payee. Raises `BadInvoice` and nothing else."""
    if len(text) > MAX_LENGTH:
        raise BadInvoice("an invoice is at most 4096 characters")
    text = text.strip().removeprefix("lightning:").removeprefix("LIGHTNING:")
    if text not in (text.lower(), text.upper()):
        raise BadInvoice("an invoice is not in mixed case")
    text = text.lower()
    currency, amount_msat = _parse_prefix(text.rpartition("1")[0])
    try:
        found = _lib.decode(text, ignore_exceptions=False, strict=False)
        return Invoice(
            bolt11=text,
            currency=currency,
            amount_msat=amount_msat,
            payment_hash=_hex32(found.payment_hash, "payment_hash"),
            payee=str(found.payee),
            description=found.description,
            description_hash=found.description_hash,
            created_at=int(found.date),
            expires_at=int(found.date) + int(found.expiry or 3600),
        )
    except BadInvoice:
        raise
    except Exception as error:
        raise BadInvoice("not a BOLT-11 invoice") from error


def check_invoice(
    invoice: Invoice,
    *,
    amount_msat: int,
    description_hash: str | None,
    payee: str | None,
    currency: str | None,
    now: int,
) -> None:
    """Raise `BadInvoice` unless the wallet made exactly the invoice that we asked for."""
    if invoice.amount_msat != amount_msat:
        raise BadInvoice(f"the invoice is over {invoice.amount_msat} msat, not {amount_msat}")
    if description_hash is not None and invoice.description_hash != description_hash:
        raise BadInvoice("the invoice does not commit to the description that was asked for")
    if payee is not None and invoice.payee != payee:
        raise BadInvoice("the invoice pays somebody else")
    if currency is not None and invoice.currency != currency:
        raise BadInvoice(f"the invoice is for network {invoice.currency!r}, not {currency!r}")
    if invoice.expires_at <= now:
        raise BadInvoice("the invoice has expired already")


def preimage_matches(preimage: str, payment_hash: str) -> bool:
    """Whether a preimage (hex) proves the payment of that hash."""
    try:
        raw = bytes.fromhex(preimage)
    except ValueError:
        return False
    return len(raw) == 32 and hashlib.sha256(raw).hexdigest() == payment_hash


def encode_invoice(
    node_secret: bytes,
    *,
    currency: str,
    amount_msat: int,
    payment_hash: str,
    now: int,
    expiry_s: int,
    description: str | None = None,
    description_hash: str | None = None,
) -> str:
    """A signed invoice, as a wallet's node makes it. Raises `BadInvoice` for impossible fields."""
    if not 0 < amount_msat <= MAX_AMOUNT_MSAT or not 0 < expiry_s < 2**31:
        raise BadInvoice("amount or expiry out of range")
    tags = _lib.Tags()
    tags.add(_lib.TagChar.payment_hash, payment_hash)
    tags.add(_lib.TagChar.payment_secret, secrets.token_hex(32))
    if description_hash is not None:
        tags.add(_lib.TagChar.description_hash, description_hash)
    else:
        tags.add(_lib.TagChar.description, (description or "")[:200])
    tags.add(_lib.TagChar.expire_time, expiry_s)
    tags.add(_lib.TagChar.min_final_cltv_expiry, 18)
    required = _lib.FeatureState.required
    features: dict[_lib.Feature | _lib.FeatureExtra, _lib.FeatureState] = {
        _lib.Feature.var_onion_optin: required,
        _lib.Feature.payment_secret: required,
    }
    tags.add(_lib.TagChar.features, _lib.Features.from_feature_list(features))
    try:
        text: str = _lib.encode(
            _lib.Bolt11(currency, now, tags, _lib.MilliSatoshi(amount_msat)), node_secret.hex()
        )
    except Exception as error:
        raise BadInvoice("cannot encode the invoice") from error
    return text


def _parse_prefix(prefix: str) -> tuple[str, int | None]:
    match = _PREFIX.fullmatch(prefix)
    if match is None:
        raise BadInvoice("not a BOLT-11 invoice")
    currency, number, multiplier = match.groups()
    if number is None:
        return currency, None
    amount = int(number)
    if multiplier == "p":
        amount, rest = divmod(amount, 10)
        if rest:
            raise BadInvoice("the amount is finer than a millisatoshi")
    else:
        amount *= _MSAT[multiplier]
    if not 0 < amount <= MAX_AMOUNT_MSAT:
        raise BadInvoice("the amount is out of range")
    return currency, amount


def _hex32(value: object, name: str) -> str:
    if not isinstance(value, str) or len(value) != 64:
        raise BadInvoice(f"the invoice has no {name}")
    return value.lower()
