"""The wallet over NIP-47: an ordinary one, or one with the nwc-enclaved extension.

Nothing a wallet says is taken as it comes. An invoice is decoded and compared with what was asked for;
"settled" must not contradict the payment hash or the preimage; a notification is a hint to ask. A payment has
failed only if the wallet never tried it or shows it as failed; for all else `handlers.domain.evidence` decides.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from bot.adapters.nwc_client import NwcClient, Whereabouts
from bot.adapters.nwc_transactions import fees_of, incoming_of, payment_of
from bot.relay.connection import RelayPolicy
from handlers.domain.evidence import Book
from handlers.domain.ledger import MAIN_WALLET
from handlers.ports import (
    Clock,
    Hint,
    Incoming,
    IncomingState,
    InvoiceWanted,
    Minted,
    PayResult,
    PayStatus,
    WalletProblem,
)
from nips.bolt11 import check_invoice, decode_invoice_untrusted, preimage_matches
from nips.errors import BadInvoice
from nips.event import Event
from nips.keys import SecretKey
from nips.nip19 import npub
from nips.nip47 import WalletCode, WalletReply, open_notification_untrusted

log = structlog.get_logger()
PAGE, MAX_PAGES = 20, 25
OWN_INVOICE_S = 600
OWN_INVOICE_S = 600
# A payment may be listed as made a little before we wrote it down: clocks differ.
CLOCKS_DIFFER_S = 600
_NETWORKS = {"mainnet": "bc", "bitcoin": "bc", "testnet": "tb", "signet": "tbs", "regtest": "bcrt"}
# The wallet says that it did not even try.
_NOT_TRIED = frozenset(
    {
        WalletCode.RATE_LIMITED,
        WalletCode.NOT_IMPLEMENTED,
        WalletCode.INSUFFICIENT_BALANCE,
        WalletCode.QUOTA_EXCEEDED,
        WalletCode.RESTRICTED,
        WalletCode.UNAUTHORIZED,
        WalletCode.UNSUPPORTED_ENCRYPTION,
    }
)


@dataclass(frozen=True)
class Node:
    """Who must be the payee of the wallet's invoices, and on which network; None when it does not tell."""

    pubkey: str | None
    currency: str | None


class NwcWallet:
    """`handlers.ports.Wallet`. Run `run` in a nursery, then `wait_ready`."""

    def __init__(
        self,
        where: Whereabouts,
        clock: Clock,
        *,
        answer_s: float = 15,
        any_payee: bool = False,
        relay_policy: RelayPolicy = RelayPolicy(),
    ) -> None:
        self._key, self._clock = where.key, clock
        self._any_payee = any_payee
        self._client = NwcClient(
            where, clock, self._hear_notification, answer_s=answer_s, relay_policy=relay_policy
        )
        self._node: Node | None = None
        self._added: set[str] = set()
        self._send_hint, self.hints = trio.open_memory_channel[Hint](1_000)

    async def run(self) -> None:
        """Keep connected and listen, until cancelled."""
        await self._client.run()

    async def wait_ready(self) -> None:
        """Return when the wallet has announced itself and told its node."""
        await self._client.informed.wait()
        while self._node is None:
            await self._learn_node()

    @property
    def service_pubkey(self) -> str | None:
        return self._client.uri.wallet_pubkey if self._client.uri is not None else None

    @property
    def zap_address_host(self) -> str | None:
        service = self.service_pubkey
        return f"{npub(service)}.zap.land" if service and self._per_container else None

    def wallet_for(self, container: str) -> str:
        return f"wallet:{container}" if self._per_container else MAIN_WALLET

    @property
    def _per_container(self) -> bool:
        return self._client.abilities is not None and self._client.abilities.per_container

    async def balance(self, owner: SecretKey | None) -> int | WalletProblem:
        reply = await self._client.ask("get_balance", {}, owner)
        if reply is None:
            return WalletProblem.UNAVAILABLE
        held = reply.result.get("balance") if reply.result is not None else None
        return held if type(held) is int and held >= 0 else WalletProblem.REFUSED

    # -- invoices -----------------------------------------------------------------------------------

    async def make_invoice(self, wanted: InvoiceWanted) -> Minted | WalletProblem:
        params: dict[str, object] = {"amount": wanted.amount_msat, "expiry": wanted.expiry_s}
        if wanted.description_hash is not None:
            params["description_hash"] = wanted.description_hash
        else:
            params["description"] = wanted.description
        if wanted.wallet == MAIN_WALLET:
            reply = await self._client.ask("make_invoice", params)
        else:
            await self._admit(wanted.container)
            reply = await self._client.ask(
                "make_invoice_for", params | {"pubkey": wanted.container}
            )
        return self._minted(reply, wanted.amount_msat, wanted.description_hash)

    async def make_own_invoice(self, amount_msat: int, memo: str) -> Minted | WalletProblem:
        # An expiry of ours: a request that got lost is waited for as long as its invoice lives.
        params = {"amount": amount_msat, "description": memo, "expiry": OWN_INVOICE_S}
        reply = await self._client.ask("make_invoice", params)
        return self._minted(reply, amount_msat, None)

    async def _admit(self, container: str) -> None:
        if container not in self._added:
            reply = await self._client.ask("add_pubkey", {"pubkey": container})
            if reply is not None and reply.code is None:
                self._added.add(container)

    def _minted(
        self, reply: WalletReply | None, amount_msat: int, description_hash: str | None
    ) -> Minted | WalletProblem:
        if reply is None:
            return WalletProblem.UNAVAILABLE
        if reply.result is None:
            log.warning("wallet refuses an invoice", code=reply.code, reason=reply.message)
            return WalletProblem.REFUSED
        try:
            invoice = decode_invoice_untrusted(str(reply.result.get("invoice")))
            check_invoice(
                invoice,
                amount_msat=amount_msat,
                description_hash=description_hash,
                payee=self._node.pubkey if self._node is not None else None,
                currency=self._node.currency if self._node is not None else None,
                now=self._clock.now(),
            )
            if reply.result.get("payment_hash", invoice.payment_hash) != invoice.payment_hash:
                raise BadInvoice("the wallet names another payment hash than the invoice")
        except BadInvoice as error:
            log.error("wallet made a wrong invoice", reason=str(error))
            return WalletProblem.LYING
        return Minted(
            invoice.bolt11,
            invoice.payment_hash,
            amount_msat,
            invoice.created_at,
            invoice.expires_at,
        )

    # -- incoming -----------------------------------------------------------------------------------

    async def look_up(self, payment_hash: str, owner: SecretKey | None) -> Incoming:
        reply = await self._client.ask("lookup_invoice", {"payment_hash": payment_hash}, owner)
        if reply is None:
            return Incoming(payment_hash, IncomingState.UNKNOWN)
        if reply.code is WalletCode.NOT_FOUND:
            return Incoming(payment_hash, IncomingState.NOT_YET)
        if reply.result is None or reply.result.get("payment_hash") != payment_hash:
            return Incoming(payment_hash, IncomingState.UNKNOWN)
        return self._incoming(incoming_of(reply.result))

    async def received(self, owner: SecretKey, since: int) -> list[Incoming]:
        asked: dict[str, object] = {"type": "incoming", "from": since}
        found = [incoming_of(tx) async for tx in self._listed(asked, owner) if tx is not None]
        return [incoming for incoming in found if incoming.state is IncomingState.SETTLED]

    async def _listed(
        self, asked: Mapping[str, object], owner: SecretKey | None
    ) -> AsyncGenerator[Mapping[str, object] | None, None]:
        """A wallet's transactions, page by page; None at last when that was not everything.

        Only an empty page is the end: wallets give fewer at a time than they were asked for. Some know no offset and
        give the same page again.
        """
        offset, before = 0, list[object]()
        for _ in range(MAX_PAGES):
            params = {**asked, "limit": PAGE, "offset": offset}
            reply = await self._client.ask("list_transactions", params, owner)
            listed = (
                reply.result.get("transactions") if reply is not None and reply.result else None
            )
            if listed == []:
                return
            if not isinstance(listed, list) or listed == before:
                break
            for transaction in listed:
                if isinstance(transaction, dict):
                    yield transaction
            offset, before = offset + len(listed), listed
        yield None

    @staticmethod
    def _incoming(found: Incoming) -> Incoming:
        if found.state is IncomingState.UNKNOWN:
            log.error("wallet contradicts itself", payment_hash=found.payment_hash)
        return found

    # -- outgoing -----------------------------------------------------------------------------------

    async def pay(self, bolt11: str, amount_msat: int, owner: SecretKey | None) -> PayResult:
        invoice = decode_invoice_untrusted(bolt11)
        params: dict[str, object] = {"invoice": bolt11}
        if invoice.amount_msat is None:
            params["amount"] = amount_msat
        late = partial(self._hear_late, invoice.payment_hash)
        reply = await self._client.ask("pay_invoice", params, owner, late)
        if reply is None:
            return PayResult(PayStatus.UNKNOWN)
        said = _pay_reply(reply, invoice.payment_hash)
        if said.status is not PayStatus.UNKNOWN:
            return said
        # "Failed" may mean a timeout with the payment still on its way, and a success without a proof
        # proves nothing: either way the wallet's own book decides.
        found = await self.look_up_payment(
            invoice.payment_hash, owner, self._clock.now() - CLOCKS_DIFFER_S
        )
        return PayResult(PayStatus.UNKNOWN) if found.status is PayStatus.ABSENT else found

    async def look_up_payment(
        self, payment_hash: str, owner: SecretKey | None, since: int
    ) -> PayResult:
        by_hash = await self._look_up(payment_hash, owner)
        if by_hash.status not in (PayStatus.ABSENT, PayStatus.UNKNOWN):
            return by_hash
        listed = await self._look_in_list(payment_hash, owner, since)
        if listed.status is not PayStatus.ABSENT:
            return listed if listed.status is not PayStatus.UNKNOWN else by_hash
        return PayResult(PayStatus.ABSENT, books=by_hash.books | listed.books)

    async def _look_up(self, payment_hash: str, owner: SecretKey | None) -> PayResult:
        reply = await self._client.ask("lookup_invoice", {"payment_hash": payment_hash}, owner)
        if reply is not None and reply.code is WalletCode.NOT_FOUND:
            return PayResult(PayStatus.ABSENT, books=frozenset({Book.LOOKUP}))
        result = reply.result if reply is not None else None
        if result is None or result.get("payment_hash") != payment_hash:
            return PayResult(PayStatus.UNKNOWN)
        return payment_of(result, Book.LOOKUP)

    async def _look_in_list(
        self, payment_hash: str, owner: SecretKey | None, since: int
    ) -> PayResult:
        """ABSENT only when the wallet listed everything since then, to the end."""
        asked = {"type": "outgoing", "unpaid": True, "from": since - CLOCKS_DIFFER_S}
        async with aclosing(self._listed(asked, owner)) as listed:
            async for found in listed:
                if found is None:
                    return PayResult(PayStatus.UNKNOWN)
                if found.get("payment_hash") == payment_hash:
                    return payment_of(found, Book.LIST)
        return PayResult(PayStatus.ABSENT, books=frozenset({Book.LIST}))

    # -- what the wallet says by itself -------------------------------------------------------------

    def _hear_late(self, payment_hash: str, reply: WalletReply) -> None:
        self._hint(Hint(payment_hash=payment_hash, paid=_pay_reply(reply, payment_hash)))

    def _hear_notification(self, event: Event) -> None:
        receiver = event.tag("p")
        if receiver != self._key.pubkey:
            self._hint(Hint(container=receiver))
            return
        told = open_notification_untrusted(self._key, event)
        paid = payment_of(told.transaction, None) if told.kind == "payment_sent" else None
        if paid is not None and paid.status is not PayStatus.SETTLED:
            # "Sent", yet not settled: no book was asked, so that is only a reason to ask.
            paid = PayResult(PayStatus.UNKNOWN)
        self._hint(Hint(payment_hash=told.payment_hash, paid=paid))

    def _hint(self, hint: Hint) -> None:
        try:
            self._send_hint.send_nowait(hint)
        except trio.WouldBlock:
            # Every open payment is looked at anyway; a hint only makes it sooner.
            log.warning("wallet hints come too fast")

    async def _learn_node(self) -> None:
        reply = await self._client.ask("get_info", {})
        if reply is None or reply.result is None:
            await trio.sleep(1)
            return
        pubkey = reply.result.get("pubkey")
        told = isinstance(pubkey, str) and len(pubkey) == 66 and not self._any_payee
        currency = _NETWORKS.get(str(reply.result.get("network")))
        self._node = Node(str(pubkey) if told else None, currency)


def _pay_reply(reply: WalletReply, payment_hash: str) -> PayResult:
    """What an answer to pay_invoice proves by itself: that it was never tried, or (by the preimage) paid."""
    if reply.code in _NOT_TRIED:
        return PayResult(PayStatus.FAILED, reason=reply.message)
    preimage = str(reply.result.get("preimage")) if reply.result is not None else ""
    if reply.result is not None and preimage_matches(preimage, payment_hash):
        return PayResult(PayStatus.SETTLED, fees_of(reply.result), preimage)
    return PayResult(PayStatus.UNKNOWN, reason=reply.message)
