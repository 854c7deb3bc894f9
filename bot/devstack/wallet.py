"""DEVELOPMENT ONLY. A NIP-47 wallet service: every pubkey is an account, with the nwc-enclaved extension.

python -m bot.devstack.wallet --relay ws://… --state DIR --admin PUBKEY [--fund PUBKEY=SAT]
"""

import argparse
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from bot.boot.identity import load_key
from bot.clock import SystemClock
from bot.devstack.wallet_book import WalletBook, WalletError
from bot.relay.connection import RelayPolicy
from bot.relay.pool import RelayPool
from nips import kinds
from nips.crypto import is_pubkey
from nips.errors import BadInput
from nips.event import Tag, VerifiedEvent, sign_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip04 import is_nip04
from nips.nip40 import is_expired
from nips.nip47 import WalletCode, open_request_untrusted, seal

Params = dict[str, Any]
STANDARD = (
    "get_info",
    "get_balance",
    "make_invoice",
    "lookup_invoice",
    "pay_invoice",
    "list_transactions",
)
EXTENSION = ("add_pubkey", "make_invoice_for")
DEFAULT_EXPIRY_S = 3_600
# The relay is a server under development: it comes and goes.
PATIENCE = RelayPolicy(backoff_first_s=0.2, backoff_most_s=1)


class WalletService:
    """``extension`` off makes it one ordinary NIP-47 wallet."""

    def __init__(
        self,
        key: SecretKey,
        book: WalletBook,
        pool: RelayPool,
        admin: str,
        *,
        extension: bool = True,
    ) -> None:
        self._key, self._book, self._pool, self._admin = key, book, pool, admin
        self._clock = SystemClock()
        self._seen: set[str] = set()
        self._methods = (*STANDARD, *(EXTENSION if extension else ()))
        self._table: dict[str, Callable[[str, Params], dict[str, Any]]] = {
            "get_info": self._get_info,
            "get_balance": self._get_balance,
            "make_invoice": self._make_invoice,
            "lookup_invoice": self._lookup_invoice,
            "list_transactions": self._list_transactions,
            "add_pubkey": self._add_pubkey,
            "make_invoice_for": self._make_invoice_for,
        }

    async def announce(self, more: Sequence[Tag] = ()) -> None:
        """``more``: tags that say where it is, and prove who it is."""
        now = self._clock.now()
        tags = [
            ("encryption", "nip44_v2 nip04"),
            ("notifications", "payment_received payment_sent"),
        ]
        content = " ".join([*self._methods, "notifications"])
        await self._pool.publish(sign_event(self._key, kinds.WALLET_INFO, content, tags, now))
        limits = [
            ("minSendable", "1000"),
            ("maxSendable", "10000000000"),
            ("maxBalance", "100000000000"),
            ("t", "debug"),
        ]
        await self._pool.publish(
            sign_event(self._key, kinds.WALLET_SERVICE, "", [*limits, *more], now)
        )

    async def run(self) -> None:
        us = {"p": frozenset({self._key.pubkey})}
        wanted = Filter(kinds=frozenset({kinds.WALLET_REQUEST}), tags=us)
        self._pool.subscribe("wallet", [wanted], back_s=60)
        while True:
            event = (await self._pool.receive()).event
            if event.id not in self._seen and not is_expired(event, self._clock.now()):
                self._seen.add(event.id)
                await self._answer(event)

    async def _answer(self, event: VerifiedEvent) -> None:
        use_nip44 = not is_nip04(event.content)
        try:
            method, params = open_request_untrusted(self._key, event)
        except BadInput:
            return
        body: dict[str, Any]
        paid = None
        try:
            if method == "pay_invoice":
                paid = self._book.pay(event.pubkey, str(params.get("invoice")), self._clock.now())
                result = {"preimage": paid.preimage, "fees_paid": 0}
            elif method in self._methods:
                result = self._table[method](event.pubkey, params)
            else:
                raise WalletError(WalletCode.NOT_IMPLEMENTED, method[:40])
            body = {"result_type": method, "error": None, "result": result}
        except WalletError as error:
            told = {"code": error.code.value, "message": str(error)}
            body = {"result_type": method, "error": told, "result": None}
        content = seal(self._key, event.pubkey, body, use_nip44=use_nip44)
        await self._send(kinds.WALLET_RESPONSE, content, [("p", event.pubkey), ("e", event.id)])
        if paid is not None:
            await self._notify("payment_received", paid.payee, paid.payment_hash)
            await self._notify("payment_sent", event.pubkey, paid.payment_hash)

    async def _notify(self, kind: str, pubkey: str, payment_hash: str) -> None:
        transaction = self._book.look_up(pubkey, payment_hash, self._clock.now())
        body = {"notification_type": kind, "notification": transaction}
        for event_kind, use_nip44 in (
            (kinds.WALLET_NOTIFICATION, True),
            (kinds.WALLET_NOTIFICATION_NIP04, False),
        ):
            await self._send(
                event_kind, seal(self._key, pubkey, body, use_nip44=use_nip44), [("p", pubkey)]
            )

    async def _send(self, kind: int, content: str, tags: list[tuple[str, ...]]) -> None:
        event = sign_event(self._key, kind, content, tags, self._clock.now())
        await self._pool.publish(event, wait_ok=False)

    # -- methods ------------------------------------------------------------------------------------

    def _get_info(self, _: str, __: Params) -> dict[str, Any]:
        return {
            "alias": "enclaved dev wallet",
            "pubkey": self._book.node_pubkey(self._clock.now()),
            "network": "regtest",
            "methods": list(self._methods),
            "notifications": ["payment_received", "payment_sent"],
        }

    def _get_balance(self, account: str, _: Params) -> dict[str, Any]:
        return {"balance": self._book.balance(account)}

    def _make_invoice(self, account: str, params: Params) -> dict[str, Any]:
        amount, expiry = params.get("amount"), params.get("expiry") or DEFAULT_EXPIRY_S
        if type(amount) is not int or amount <= 0 or type(expiry) is not int:
            raise WalletError(WalletCode.OTHER, "amount must be a positive number of msat")
        description, description_hash = params.get("description"), params.get("description_hash")
        return self._book.make_invoice(
            account, amount, description, description_hash, expiry, self._clock.now()
        )

    def _make_invoice_for(self, _: str, params: Params) -> dict[str, Any]:
        pubkey = str(params.get("pubkey"))
        if not is_pubkey(pubkey):
            raise WalletError(WalletCode.OTHER, "pubkey must be 64 hex digits")
        return self._make_invoice(pubkey, params)

    def _add_pubkey(self, account: str, params: Params) -> dict[str, Any]:
        if account != self._admin:
            raise WalletError(WalletCode.RESTRICTED, "only the instance may add pubkeys")
        return {"pubkey": str(params.get("pubkey"))}

    def _lookup_invoice(self, account: str, params: Params) -> dict[str, Any]:
        return self._book.look_up(account, str(params.get("payment_hash")), self._clock.now())

    def _list_transactions(self, account: str, params: Params) -> dict[str, Any]:
        listed = self._book.transactions(
            account,
            kind=params.get("type"),
            since=int(params.get("from") or 0),
            unpaid=bool(params.get("unpaid")),
            limit=min(20, int(params.get("limit") or 20)),
            offset=int(params.get("offset") or 0),
            now=self._clock.now(),
        )
        return {"transactions": listed}


@asynccontextmanager
async def running(
    key: SecretKey, book: WalletBook, relay_url: str, admin: str, *, extension: bool = True
) -> AsyncIterator[WalletService]:
    """It is connected and answers; to be announced by who knows what to say of it."""
    pool = RelayPool(SystemClock(), auth_key=key, policy=PATIENCE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        pool.add(relay_url)
        await pool.wait_connected()
        service = WalletService(key, book, pool, admin, extension=extension)
        nursery.start_soon(service.run)
        yield service


async def serve(
    key: SecretKey, book: WalletBook, relay_url: str, admin: str, *, extension: bool
) -> None:
    """Run until cancelled; writes ``ready`` to standard output once announced."""
    async with running(key, book, relay_url, admin, extension=extension) as service:
        await service.announce()
        print("ready", flush=True)
        await trio.sleep_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="DEVELOPMENT ONLY wallet service")
    parser.add_argument("--relay", required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--admin", required=True)
    parser.add_argument("--fund", action="append", default=[])
    parser.add_argument(
        "--ordinary", action="store_true", help="no extension: one NIP-47 wallet per key"
    )
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    book = WalletBook(options.state / "wallet.sqlite")
    for grant in options.fund:
        pubkey, _, sat = grant.partition("=")
        book.fund(grant, pubkey, int(sat) * 1_000)
    key = load_key(options.state / "wallet.key")
    try:
        trio.run(
            lambda: serve(key, book, options.relay, options.admin, extension=not options.ordinary)
        )
    except KeyboardInterrupt:
        sys.exit(0)
    finally:
        book.close()


if __name__ == "__main__":
    main()
