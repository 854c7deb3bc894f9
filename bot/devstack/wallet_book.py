"""DEVELOPMENT ONLY. The wallet service's own ledger: accounts by pubkey, invoices, payments between them."""

import hashlib
import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nips.bolt11 import Invoice, decode_invoice_untrusted, encode_invoice
from nips.errors import BadInvoice
from nips.nip47 import WalletCode

CURRENCY = "bcrt"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS node (secret BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS account (pubkey TEXT PRIMARY KEY, balance_msat INTEGER NOT NULL CHECK (balance_msat >= 0));
CREATE TABLE IF NOT EXISTS funding (key TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS invoice (
    payment_hash TEXT PRIMARY KEY, payee TEXT NOT NULL, payer TEXT, preimage TEXT NOT NULL, bolt11 TEXT NOT NULL,
    amount_msat INTEGER NOT NULL, description TEXT, description_hash TEXT,
    created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, settled_at INTEGER);
CREATE TABLE IF NOT EXISTS failure (
    payment_hash TEXT, payer TEXT, bolt11 TEXT NOT NULL, amount_msat INTEGER NOT NULL, created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, PRIMARY KEY (payment_hash, payer));
"""


class WalletError(Exception):
    """A NIP-47 error: code and text."""

    def __init__(self, code: WalletCode, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Paid:
    """A payment that went through: whom to notify."""

    payment_hash: str
    payee: str
    preimage: str


class WalletBook:
    """SQLite; every change is one transaction."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.executescript(_SCHEMA)
        if self._db.execute("SELECT 1 FROM node").fetchone() is None:
            self._db.execute("INSERT INTO node VALUES (?)", (secrets.token_bytes(32),))
        self._secret: bytes = self._db.execute("SELECT secret FROM node").fetchone()[0]

    def close(self) -> None:
        self._db.close()

    def node_pubkey(self, now: int) -> str:
        """The payee of every invoice, as an invoice tells it."""
        sample = encode_invoice(
            self._secret,
            currency=CURRENCY,
            amount_msat=1_000,
            payment_hash="00" * 32,
            now=now,
            expiry_s=60,
        )
        return decode_invoice_untrusted(sample).payee

    def fund(self, key: str, pubkey: str, amount_msat: int) -> None:
        """The faucet: once per key."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            if self._db.execute("INSERT OR IGNORE INTO funding VALUES (?)", (key,)).rowcount:
                self._add(pubkey, amount_msat)

    def balance(self, pubkey: str) -> int:
        row = self._db.execute(
            "SELECT balance_msat FROM account WHERE pubkey = ?", (pubkey,)
        ).fetchone()
        return int(row[0]) if row is not None else 0

    def make_invoice(
        self,
        payee: str,
        amount_msat: int,
        description: str | None,
        description_hash: str | None,
        expiry_s: int,
        now: int,
    ) -> dict[str, Any]:
        preimage = secrets.token_bytes(32)
        payment_hash = hashlib.sha256(preimage).hexdigest()
        try:
            bolt11 = encode_invoice(
                self._secret,
                currency=CURRENCY,
                amount_msat=amount_msat,
                payment_hash=payment_hash,
                now=now,
                expiry_s=expiry_s,
                description=description,
                description_hash=description_hash,
            )
        except BadInvoice as error:
            raise WalletError(WalletCode.OTHER, str(error)) from error
        self._db.execute(
            "INSERT INTO invoice VALUES (?, ?, NULL, ?, ?, ?, ?, ?, ?, ?, NULL)",
            (
                payment_hash,
                payee,
                preimage.hex(),
                bolt11,
                amount_msat,
                description,
                description_hash,
                now,
                now + expiry_s,
            ),
        )
        return self.look_up(payee, payment_hash, now)

    def pay(self, payer: str, bolt11: str, now: int) -> Paid:
        """Move the money and settle, or raise `WalletError`; nothing in between. What failed is kept as such."""
        try:
            asked = decode_invoice_untrusted(bolt11)
        except BadInvoice as error:
            raise WalletError(WalletCode.OTHER, str(error)) from error
        try:
            return self._pay(payer, asked, now)
        except WalletError as error:
            if error.code is WalletCode.PAYMENT_FAILED:
                self._keep_failure(payer, asked, now)
            raise

    def _pay(self, payer: str, asked: Invoice, now: int) -> Paid:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            invoice = self._db.execute(
                "SELECT * FROM invoice WHERE payment_hash = ?", (asked.payment_hash,)
            ).fetchone()
            if invoice is None or invoice["bolt11"] != asked.bolt11.lower():
                raise WalletError(
                    WalletCode.PAYMENT_FAILED, "no route: only invoices of this wallet can be paid"
                )
            if invoice["settled_at"] is not None:
                raise WalletError(WalletCode.OTHER, "the invoice is paid already")
            if invoice["expires_at"] <= now:
                raise WalletError(WalletCode.PAYMENT_FAILED, "the invoice has expired")
            if self.balance(payer) < invoice["amount_msat"]:
                raise WalletError(WalletCode.INSUFFICIENT_BALANCE, "the balance is too low")
            self._add(payer, -invoice["amount_msat"])
            self._add(invoice["payee"], invoice["amount_msat"])
            self._db.execute(
                "UPDATE invoice SET settled_at = ?, payer = ? WHERE payment_hash = ?",
                (now, payer, asked.payment_hash),
            )
        return Paid(asked.payment_hash, invoice["payee"], invoice["preimage"])

    def _keep_failure(self, payer: str, asked: Invoice, now: int) -> None:
        values = (asked.payment_hash, payer, asked.bolt11, asked.amount_msat or 0, now)
        self._db.execute(
            "INSERT OR IGNORE INTO failure VALUES (?, ?, ?, ?, ?, ?)", (*values, asked.expires_at)
        )

    def look_up(self, pubkey: str, payment_hash: str, now: int) -> dict[str, Any]:
        """NIP-47's transaction, as this account sees it."""
        row = self._db.execute(
            "SELECT * FROM invoice WHERE payment_hash = ? AND (payee = ? OR payer = ?)",
            (payment_hash, pubkey, pubkey),
        ).fetchone()
        if row is not None:
            return _transaction(row, pubkey, now)
        failed = self._db.execute(
            "SELECT * FROM failure WHERE payment_hash = ? AND payer = ?", (payment_hash, pubkey)
        ).fetchone()
        if failed is None:
            raise WalletError(WalletCode.NOT_FOUND, "there is no such invoice in this account")
        return _failed(failed)

    def transactions(
        self,
        pubkey: str,
        *,
        kind: str | None,
        since: int,
        unpaid: bool,
        limit: int,
        offset: int,
        now: int,
    ) -> list[dict[str, Any]]:
        rows = self._db.execute(
            "SELECT * FROM invoice WHERE (payee = ? OR payer = ?) AND created_at >= ? ORDER BY created_at DESC",
            (pubkey, pubkey, since),
        ).fetchall()
        listed = [
            _transaction(row, pubkey, now)
            for row in rows
            if unpaid or row["settled_at"] is not None
        ]
        return [tx for tx in listed if kind in (None, tx["type"])][offset : offset + limit]

    def _add(self, pubkey: str, amount_msat: int) -> None:
        self._db.execute("INSERT OR IGNORE INTO account VALUES (?, 0)", (pubkey,))
        self._db.execute(
            "UPDATE account SET balance_msat = balance_msat + ? WHERE pubkey = ?",
            (amount_msat, pubkey),
        )


def _failed(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "type": "outgoing",
        "state": "failed",
        "invoice": row["bolt11"],
        "payment_hash": row["payment_hash"],
        "amount": row["amount_msat"],
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
    }


def _transaction(row: sqlite3.Row, pubkey: str, now: int) -> dict[str, Any]:
    settled = row["settled_at"] is not None
    return {
        "type": "outgoing" if row["payer"] == pubkey and row["payee"] != pubkey else "incoming",
        "state": "settled" if settled else "expired" if row["expires_at"] <= now else "pending",
        "invoice": row["bolt11"],
        "description": row["description"],
        "description_hash": row["description_hash"],
        # A payee learns the preimage by being paid, as with a real node.
        "preimage": row["preimage"] if settled else None,
        "payment_hash": row["payment_hash"],
        "amount": row["amount_msat"],
        "fees_paid": 0,
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
        "settled_at": row["settled_at"],
    }
