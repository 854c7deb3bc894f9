"""The wallet over NIP-47: an ordinary one, or one with the nwc-enclaved extension.

Nothing a wallet says is taken as it comes. An invoice is decoded and compared with what was asked for;
"settled" must not contradict the payment hash or the preimage; a notification is only a hint to ask.
No answer in time is UNKNOWN: the request may still be carried out until it expires.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import structlog
import trio

from bot.relay.connection import RelayPolicy
from bot.relay.pool import Heard, RelayPool
from handlers.domain.ledger import MAIN_WALLET
from handlers.ports import (
    Clock,
    Incoming,
    IncomingState,
    InvoiceWanted,
    Minted,
    PayResult,
    PayStatus,
    WalletProblem,
)
from nips import kinds
from nips.bolt11 import check_invoice, decode_invoice_untrusted, preimage_matches
from nips.errors import BadInput, BadInvoice
from nips.event import Event, verify_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip19 import npub
from nips.nip47 import (
    WalletAbilities,
    WalletCode,
    WalletReply,
    WalletUri,
    build_request,
    open_notification_untrusted,
    open_reply_untrusted,
    parse_wallet_info,
)

log = structlog.get_logger()
SUB = "nwc"
REQUEST_VALID_S = 60
SLOW_CLOCK_S = 3_600
PAGE, MAX_PAGES = 20, 25
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
class Hint:
    """Something happened: to this payment, or somewhere in this container's wallet."""

    payment_hash: str | None = None
    container: str | None = None


@dataclass(frozen=True)
class Node:
    """Who must be the payee of the wallet's invoices, and on which network; None when it does not tell."""

    pubkey: str | None
    currency: str | None


class NwcWallet:
    """`handlers.ports.Wallet`. Run `run` in a nursery, then `wait_ready`."""

    def __init__(
        self,
        uri: WalletUri,
        clock: Clock,
        *,
        answer_s: float = 15,
        any_payee: bool = False,
        relay_policy: RelayPolicy = RelayPolicy(),
    ) -> None:
        self._uri = uri
        self._clock = clock
        self._answer_s = answer_s
        self._any_payee = any_payee
        self._pool = RelayPool(clock, auth_key=uri.key, policy=relay_policy)
        self._abilities: WalletAbilities | None = None
        self._informed, self._informed_at = trio.Event(), 0
        self._node: Node | None = None
        self._waiting: dict[str, tuple[SecretKey, trio.Event, list[WalletReply]]] = {}
        self._added: set[str] = set()
        self._send_hint, self.hints = trio.open_memory_channel[Hint](1_000)

    async def run(self) -> None:
        """Keep connected and listen, until cancelled."""
        wallet = frozenset({self._uri.wallet_pubkey})
        answers = {
            kinds.WALLET_RESPONSE,
            kinds.WALLET_NOTIFICATION,
            kinds.WALLET_NOTIFICATION_NIP04,
        }
        # By author only: some wallets put no p tag on their answers. Whose clock is slow is heard as well: an
        # answer names its request by id, so its date says nothing.
        self._pool.subscribe(
            SUB, [Filter(authors=wallet, kinds=frozenset(answers))], back_s=SLOW_CLOCK_S
        )
        self._pool.subscribe(
            f"{SUB}-info",
            [Filter(authors=wallet, kinds=frozenset({kinds.WALLET_INFO}))],
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pool.run)
            for url in self._uri.relay_urls:
                self._pool.add(url)
            while True:
                self._hear(await self._pool.receive())

    async def wait_ready(self) -> None:
        """Return when the wallet has announced itself and told its node."""
        await self._informed.wait()
        while self._node is None:
            await self._learn_node()

    @property
    def zap_address_host(self) -> str | None:
        return f"{npub(self._uri.wallet_pubkey)}.zap.land" if self._per_container else None

    def wallet_for(self, container: str) -> str:
        return f"wallet:{container}" if self._per_container else MAIN_WALLET

    @property
    def _per_container(self) -> bool:
        return self._abilities is not None and self._abilities.per_container

    # -- invoices -----------------------------------------------------------------------------------

    async def make_invoice(self, wanted: InvoiceWanted) -> Minted | WalletProblem:
        params: dict[str, object] = {"amount": wanted.amount_msat, "expiry": wanted.expiry_s}
        if wanted.description_hash is not None:
            params["description_hash"] = wanted.description_hash
        else:
            params["description"] = wanted.description
        if wanted.wallet == MAIN_WALLET:
            reply = await self._ask("make_invoice", params)
        else:
            await self._admit(wanted.container)
            reply = await self._ask("make_invoice_for", params | {"pubkey": wanted.container})
        return self._minted(reply, wanted.amount_msat, wanted.description_hash)

    async def make_own_invoice(self, amount_msat: int, memo: str) -> Minted | WalletProblem:
        reply = await self._ask("make_invoice", {"amount": amount_msat, "description": memo})
        return self._minted(reply, amount_msat, None)

    async def _admit(self, container: str) -> None:
        if container not in self._added:
            reply = await self._ask("add_pubkey", {"pubkey": container})
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
        reply = await self._ask("lookup_invoice", {"payment_hash": payment_hash}, owner)
        if reply is None:
            return Incoming(payment_hash, IncomingState.UNKNOWN)
        if reply.code is WalletCode.NOT_FOUND:
            return Incoming(payment_hash, IncomingState.NOT_YET)
        if reply.result is None or reply.result.get("payment_hash") != payment_hash:
            return Incoming(payment_hash, IncomingState.UNKNOWN)
        return _incoming(reply.result)

    async def received(self, owner: SecretKey, since: int) -> list[Incoming]:
        found: list[Incoming] = []
        for page in range(MAX_PAGES):
            params: dict[str, object] = {
                "type": "incoming",
                "from": since,
                "limit": PAGE,
                "offset": page * PAGE,
            }
            reply = await self._ask("list_transactions", params, owner)
            listed = (
                reply.result.get("transactions")
                if reply is not None and reply.result is not None
                else None
            )
            if not isinstance(listed, list):
                break
            found += [_incoming(tx) for tx in listed if isinstance(tx, dict)]
            if len(listed) < PAGE:
                break
        return [incoming for incoming in found if incoming.state is IncomingState.SETTLED]

    # -- outgoing -----------------------------------------------------------------------------------

    async def pay(self, bolt11: str, amount_msat: int, owner: SecretKey | None) -> PayResult:
        invoice = decode_invoice_untrusted(bolt11)
        params: dict[str, object] = {"invoice": bolt11}
        if invoice.amount_msat is None:
            params["amount"] = amount_msat
        reply = await self._ask("pay_invoice", params, owner)
        if reply is None:
            return PayResult(PayStatus.UNKNOWN)
        if reply.code in _NOT_TRIED:
            return PayResult(PayStatus.FAILED, reason=reply.message)
        preimage = str(reply.result.get("preimage")) if reply.result is not None else ""
        if reply.result is not None and preimage_matches(preimage, invoice.payment_hash):
            return PayResult(PayStatus.SETTLED, _fees(reply.result), preimage)
        # "Failed" may mean a timeout with the payment still on its way, and a success without a proof
        # proves nothing: either way the wallet's own book decides.
        found = await self.look_up_payment(invoice.payment_hash, owner)
        if reply.code is WalletCode.PAYMENT_FAILED and found.status is PayStatus.NOT_FOUND:
            return PayResult(PayStatus.FAILED, reason=reply.message)
        return (
            found
            if found.status in (PayStatus.SETTLED, PayStatus.FAILED)
            else PayResult(PayStatus.UNKNOWN)
        )

    async def look_up_payment(self, payment_hash: str, owner: SecretKey | None) -> PayResult:
        reply = await self._ask("lookup_invoice", {"payment_hash": payment_hash}, owner)
        if reply is None:
            return PayResult(PayStatus.UNKNOWN)
        if reply.code is WalletCode.NOT_FOUND:
            return PayResult(PayStatus.NOT_FOUND)
        result = reply.result
        if (
            result is None
            or result.get("payment_hash") != payment_hash
            or result.get("type") == "incoming"
        ):
            return PayResult(PayStatus.UNKNOWN)
        if result.get("state") == "failed":
            return PayResult(PayStatus.FAILED, reason="the wallet says that it failed")
        if _is_settled(result) and not _contradicts(result):
            return PayResult(PayStatus.SETTLED, _fees(result), _preimage(result))
        return PayResult(PayStatus.UNKNOWN)

    # -- asking and hearing -------------------------------------------------------------------------

    async def _ask(
        self, method: str, params: Mapping[str, object], owner: SecretKey | None = None
    ) -> WalletReply | None:
        """The wallet's answer, or None when there was none in time."""
        key = owner or self._uri.key
        request = build_request(
            key,
            self._uri.wallet_pubkey,
            method,
            dict(params),
            now=self._clock.now(),
            valid_s=REQUEST_VALID_S,
            use_nip44=self._abilities is None or self._abilities.nip44,
        )
        answered, replies = trio.Event(), list[WalletReply]()
        self._waiting[request.id] = (key, answered, replies)
        try:
            with trio.move_on_after(self._answer_s):
                await self._pool.publish(request, self._uri.relay_urls, wait_ok=False)
                await answered.wait()
        finally:
            del self._waiting[request.id]
        if not replies:
            log.warning("wallet does not answer", method=method)
        return replies[0] if replies else None

    def _hear(self, heard: Heard) -> None:
        event = heard.event
        try:
            verify_event(event)
            match event.kind:
                case kinds.WALLET_INFO if event.created_at >= self._informed_at:
                    # An older one that a relay kept could take us back to NIP-04.
                    self._abilities, self._informed_at = parse_wallet_info(event), event.created_at
                    self._informed.set()
                case kinds.WALLET_INFO:
                    pass
                case kinds.WALLET_RESPONSE:
                    self._hear_reply(event)
                case _:
                    self._hear_notification(event)
        except BadInput as error:
            log.info("wallet event ignored", reason=str(error))

    def _hear_reply(self, event: Event) -> None:
        waiting = self._waiting.get(event.tag("e") or "")
        if waiting is not None:
            key, answered, replies = waiting
            replies.append(open_reply_untrusted(key, event))
            answered.set()

    def _hear_notification(self, event: Event) -> None:
        receiver = event.tag("p")
        if receiver == self._uri.key.pubkey:
            notification = open_notification_untrusted(self._uri.key, event)
            hint = Hint(payment_hash=notification.payment_hash)
        else:
            hint = Hint(container=receiver)
        try:
            self._send_hint.send_nowait(hint)
        except trio.WouldBlock:
            # Every open invoice is looked at anyway; a hint only makes it sooner.
            log.warning("wallet hints come too fast")

    async def _learn_node(self) -> None:
        reply = await self._ask("get_info", {})
        if reply is None or reply.result is None:
            await trio.sleep(1)
            return
        pubkey = reply.result.get("pubkey")
        told = isinstance(pubkey, str) and len(pubkey) == 66 and not self._any_payee
        currency = _NETWORKS.get(str(reply.result.get("network")))
        self._node = Node(str(pubkey) if told else None, currency)


def _incoming(tx: Mapping[str, object]) -> Incoming:
    payment_hash, amount = str(tx.get("payment_hash")), tx.get("amount")
    if not _is_settled(tx):
        return Incoming(payment_hash, IncomingState.NOT_YET)
    if (
        _contradicts(tx)
        or tx.get("type", "incoming") != "incoming"
        or type(amount) is not int
        or not 0 < amount < 2**60
    ):
        log.error("wallet contradicts itself", payment_hash=payment_hash)
        return Incoming(payment_hash, IncomingState.UNKNOWN)
    settled_at = tx.get("settled_at")
    return Incoming(
        payment_hash,
        IncomingState.SETTLED,
        amount_msat=amount,
        preimage=_preimage(tx),
        settled_at=settled_at if type(settled_at) is int and 0 < settled_at < 2**32 else 0,
        bolt11=str(tx.get("invoice") or ""),
    )


def _is_settled(tx: Mapping[str, object]) -> bool:
    # Older wallets tell no state: a time of settlement is their way of saying it.
    state = tx.get("state")
    return state == "settled" if isinstance(state, str) else bool(tx.get("settled_at"))


def _preimage(tx: Mapping[str, object]) -> str | None:
    preimage = tx.get("preimage")
    # nwc-enclaved writes "-" for payments between its own accounts.
    return preimage if isinstance(preimage, str) and len(preimage) == 64 else None


def _contradicts(tx: Mapping[str, object]) -> bool:
    preimage = _preimage(tx)
    return preimage is not None and not preimage_matches(preimage, str(tx.get("payment_hash")))


def _fees(tx: Mapping[str, object]) -> int:
    fees = tx.get("fees_paid")
    # Bounded: it is added up in 64 bits, and no payment costs a bitcoin.
    return fees if type(fees) is int and 0 <= fees <= 10**11 else 0
