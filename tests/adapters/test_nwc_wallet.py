"""Our NIP-47 client against the dev wallet service, over a real relay; and against wallets that lie."""

from contextlib import asynccontextmanager, closing

import pytest
import trio

from bot.adapters.nwc_client import known
from bot.adapters.nwc_wallet import NwcWallet
from bot.clock import SystemClock
from bot.devstack.wallet import WalletService
from bot.devstack.wallet_book import WalletBook, WalletError
from bot.relay.pool import RelayPool
from handlers.domain.evidence import Book
from handlers.domain.ledger import MAIN_WALLET
from handlers.ports import IncomingState, InvoiceWanted, Minted, PayStatus, WalletProblem
from nips import kinds
from nips.event import sign_event
from nips.keys import SecretKey
from nips.nip47 import build_request, format_uri, open_request_untrusted, parse_uri, seal
from tests.relay.conftest import QUICK, relay


class Quick(NwcWallet):
    """A client that does not wait long."""

    def __init__(self, uri, **kwargs):
        super().__init__(known(uri), SystemClock(), answer_s=1, **kwargs)


@asynccontextmanager
async def running(book, *, extension=True, alter=None, ready=True):
    """A wallet service on a relay of ours, and our client; ``alter`` changes replies before they leave."""
    service_key, admin = SecretKey.generate(), SecretKey.generate()
    async with relay() as (_, url), trio.open_nursery() as nursery:
        pool = RelayPool(SystemClock(), auth_key=service_key, policy=QUICK)
        nursery.start_soon(pool.run)
        pool.add(url)
        await pool.wait_connected()
        service = WalletService(service_key, book, pool, admin.pubkey, extension=extension)
        if alter is not None:
            service._send = alter(service, service._send)
        nursery.start_soon(service.run)
        await service.announce()
        client = Quick(parse_uri(format_uri(service_key.pubkey, url, admin)))
        nursery.start_soon(client.run)
        if ready:
            with trio.fail_after(10):
                await client.wait_ready()
        client.test_url, client.test_service, client.test_admin = url, service, admin
        yield client
        nursery.cancel_scope.cancel()


@pytest.fixture
def book(tmp_path):
    with closing(WalletBook(tmp_path / "wallet.sqlite")) as book:
        yield book


def wanted(amount_msat=21_000, wallet=MAIN_WALLET, container="c" * 64, description_hash=None):
    return InvoiceWanted(container, wallet, amount_msat, "test", description_hash, 600)


async def test_invoice_payment_and_lookup(book):
    async with running(book) as wallet:
        minted = await wallet.make_invoice(wanted())
        assert isinstance(minted, Minted)
        assert IncomingState.NOT_YET is (await wallet.look_up(minted.payment_hash, None)).state
        stranger = SecretKey.generate()
        book.fund("f", stranger.pubkey, 100_000)
        paid = await wallet.pay(minted.bolt11, 21_000, stranger)
        assert PayStatus.SETTLED is paid.status
        found = await wallet.look_up(minted.payment_hash, None)
        assert (IncomingState.SETTLED, 21_000, paid.preimage) == (
            found.state,
            found.amount_msat,
            found.preimage,
        )
        with trio.fail_after(2):
            assert minted.payment_hash == (await wallet.hints.receive()).payment_hash


async def test_description_hash_is_committed_to(book):
    async with running(book) as wallet:
        assert isinstance(await wallet.make_invoice(wanted(description_hash="ab" * 32)), Minted)


async def test_an_unknown_hash_is_not_yet_paid_and_never_sent(book):
    async with running(book) as wallet:
        assert IncomingState.NOT_YET is (await wallet.look_up("ab" * 32, None)).state
        found = await wallet.look_up_payment("ab" * 32, None, 0)
        assert (PayStatus.ABSENT, {Book.LOOKUP, Book.LIST}) == (found.status, found.books)


async def test_a_payment_without_money_fails_for_certain(book):
    async with running(book) as wallet:
        minted = await wallet.make_own_invoice(5_000, "x")
        broke = SecretKey.generate()
        assert PayStatus.FAILED is (await wallet.pay(minted.bolt11, 5_000, broke)).status


async def test_an_expired_or_foreign_invoice_fails_for_certain(book, tmp_path):
    with closing(WalletBook(tmp_path / "other.sqlite")) as elsewhere:
        foreign = elsewhere.make_invoice("x", 1_000, "d", None, 600, SystemClock().now())[
            "invoice"
        ]
    async with running(book) as wallet:
        book.fund("f", wallet.test_admin.pubkey, 100_000)
        assert PayStatus.FAILED is (await wallet.pay(foreign, 1_000, None)).status


async def test_per_container_wallets(book):
    container = SecretKey.generate()
    async with running(book) as wallet:
        account = wallet.wallet_for(container.pubkey)
        assert f"wallet:{container.pubkey}" == account
        minted = await wallet.make_invoice(wanted(wallet=account, container=container.pubkey))
        stranger = SecretKey.generate()
        book.fund("f", stranger.pubkey, 100_000)
        await wallet.pay(minted.bolt11, 0, stranger)
        assert 21_000 == book.balance(container.pubkey)
        assert (
            IncomingState.SETTLED is (await wallet.look_up(minted.payment_hash, container)).state
        )
        received = await wallet.received(container, 0)
        assert [minted.payment_hash] == [incoming.payment_hash for incoming in received]
        own = await wallet.make_own_invoice(20_000, "sweep")
        assert PayStatus.SETTLED is (await wallet.pay(own.bolt11, 0, container)).status
        assert 1_000 == book.balance(container.pubkey)


async def test_an_ordinary_wallet_keeps_everything_in_one(book):
    async with running(book, extension=False) as wallet:
        assert MAIN_WALLET == wallet.wallet_for("c" * 64)
        assert wallet.zap_address_host is None


async def test_a_wallet_that_knows_only_nip04(book):
    async with running(book, ready=False) as wallet:
        tags = [("encryption", "nip04")]
        content = " ".join(wallet.test_service._methods)
        event = sign_event(
            wallet.test_service._key, kinds.WALLET_INFO, content, tags, SystemClock().now() + 5
        )
        await wallet.test_service._pool.publish(event)
        await trio.sleep(0.2)
        assert not wallet._client.abilities.nip44
        assert isinstance(await wallet.make_own_invoice(1_000, "x"), Minted)


async def test_an_older_info_event_cannot_take_us_back_to_nip04(book):
    async with running(book) as wallet:
        old = sign_event(
            wallet.test_service._key,
            kinds.WALLET_INFO,
            "get_info",
            [],
            SystemClock().now() - 1_000,
        )
        from bot.relay.pool import Heard

        wallet._client._hear(Heard("x", "nwc-info", old))
        assert wallet._client.abilities.nip44


async def test_answers_without_a_p_tag_are_matched_by_author_and_e(book):
    def no_p(service, send):
        async def altered(kind, content, tags):
            await send(kind, content, [t for t in tags if t[0] != "p"])

        return altered

    async with running(book, alter=no_p) as wallet:
        assert isinstance(await wallet.make_own_invoice(1_000, "x"), Minted)


@pytest.mark.parametrize("behind_s", [120, 3_000])
@pytest.mark.parametrize("p_tag", [True, False])
async def test_a_wallet_whose_clock_is_slow_is_heard(book, behind_s, p_tag):
    """Its answer names the request by id."""

    def slow(service, send):
        async def altered(kind, content, tags):
            kept = [t for t in tags if p_tag or t[0] != "p"]
            at = SystemClock().now() - behind_s
            event = sign_event(service._key, kind, content, kept, at)
            await service._pool.publish(event, wait_ok=False)

        return altered

    async with running(book, alter=slow) as wallet:
        assert isinstance(await wallet.make_own_invoice(1_000, "x"), Minted)


async def test_somebody_elses_answer_is_no_answer(book):
    """Signed by another key, with the right e tag: ignored, and the true answer still counts."""
    mallory = SecretKey.generate()

    def forge_first(service, send):
        async def altered(kind, content, tags):
            if kind == kinds.WALLET_RESPONSE:
                forged = sign_event(mallory, kind, content, tags, SystemClock().now())
                await service._pool.publish(forged)
            await send(kind, content, tags)

        return altered

    async with running(book, alter=forge_first) as wallet:
        assert isinstance(await wallet.make_own_invoice(1_000, "x"), Minted)


def replies(change):
    """Replace every reply's result by ``change(method, params, true_result)``."""

    def alter(service, send):
        answer = service._answer

        async def changed(event):
            method, params = open_request_untrusted(service._key, event)
            result = change(method, params)
            if result is None:
                await answer(event)
                return
            if isinstance(result, WalletError):
                error = {"code": result.code, "message": str(result)}
                body = {"result_type": method, "error": error, "result": None}
            else:
                body = {"result_type": method, "error": None, "result": result}
            content = seal(service._key, event.pubkey, body, use_nip44=True)
            await send(kinds.WALLET_RESPONSE, content, [("e", event.id)])

        service._answer = changed
        return send

    return alter


def invoice_over(book, amount):
    return lambda method, params: (
        book.make_invoice("x", amount, "d", None, 600, SystemClock().now())
        if method == "make_invoice"
        else None
    )


async def test_an_invoice_over_another_amount_is_refused(book):
    async with running(book, alter=replies(invoice_over(book, 1_000))) as wallet:
        assert WalletProblem.LYING is await wallet.make_invoice(wanted(21_000))


async def test_an_invoice_that_pays_somebody_else_is_refused(book, tmp_path):
    with closing(WalletBook(tmp_path / "other.sqlite")) as elsewhere:
        async with running(book, alter=replies(invoice_over(elsewhere, 21_000))) as wallet:
            assert WalletProblem.LYING is await wallet.make_invoice(wanted(21_000))


async def test_another_payment_hash_than_the_invoices_is_refused(book):
    def change(method, params):
        if method != "make_invoice":
            return None
        return book.make_invoice("x", 21_000, "d", None, 600, SystemClock().now()) | {
            "payment_hash": "ab" * 32
        }

    async with running(book, alter=replies(change)) as wallet:
        assert WalletProblem.LYING is await wallet.make_invoice(wanted(21_000))


@pytest.mark.parametrize(
    "result", [{}, {"invoice": 7}, {"invoice": "lnbc1nonsense"}, {"invoice": "x" * 9_000}]
)
async def test_nonsense_instead_of_an_invoice_is_refused(book, result):
    alter = replies(lambda method, params: result if method == "make_invoice" else None)
    async with running(book, alter=alter) as wallet:
        assert WalletProblem.LYING is await wallet.make_invoice(wanted())


PREIMAGE, HASH = "11" * 32, "02d449a31fbb267c8f352e9968a79e3e5fc95c1bbeaa502fd6454ebde5a4bedc"


@pytest.mark.parametrize(
    ("tx", "state"),
    [
        ({"state": "settled", "amount": 5, "preimage": PREIMAGE}, IncomingState.SETTLED),
        ({"state": "settled", "amount": 5, "preimage": None}, IncomingState.SETTLED),
        ({"state": "settled", "amount": 5, "preimage": "-"}, IncomingState.SETTLED),
        ({"settled_at": 7, "amount": 5}, IncomingState.SETTLED),
        ({"state": "pending", "amount": 5, "settled_at": 7}, IncomingState.NOT_YET),
        ({"state": "settled", "amount": 5, "preimage": "22" * 32}, IncomingState.UNKNOWN),
        ({"state": "settled", "amount": "5"}, IncomingState.UNKNOWN),
        ({"state": "settled", "amount": -5}, IncomingState.UNKNOWN),
        ({"state": "settled", "amount": 5, "type": "outgoing"}, IncomingState.UNKNOWN),
        ({"state": "settled", "amount": 5, "payment_hash": "ab" * 32}, IncomingState.UNKNOWN),
        ({}, IncomingState.NOT_YET),
    ],
)
async def test_what_a_wallet_says_of_an_invoice(book, tx, state):
    alter = replies(
        lambda method, params: {"payment_hash": HASH} | tx if method == "lookup_invoice" else None
    )
    async with running(book, alter=alter) as wallet:
        assert state is (await wallet.look_up(HASH, None)).state


async def test_a_lying_receipt_for_a_payment_is_not_believed(book):
    """ "Paid", with a preimage that proves nothing, while the wallet's own book does not know it."""
    alter = replies(
        lambda method, params: {"preimage": "22" * 32} if method == "pay_invoice" else None
    )
    async with running(book, alter=alter) as wallet:
        minted = await wallet.make_own_invoice(1_000, "x")
        assert PayStatus.UNKNOWN is (await wallet.pay(minted.bolt11, 1_000, None)).status


def says(**answers):
    """Fixed answers by method: a result, or ``(code, message)`` as an error; all else is the wallet's own."""

    def change(method, params):
        answer = answers.get(method)
        return _Error(*answer) if isinstance(answer, tuple) else answer

    return replies(change)


class _Error(WalletError):
    def __init__(self, code, text):
        super().__init__(None, text)
        self.code = code


NOTHING_LISTED = {"transactions": []}


@pytest.mark.parametrize(
    ("pay", "lookup", "listed", "status"),
    [
        # The wallet failed it, and does not know it: it may be on its way all the same.
        (("PAYMENT_FAILED", "timeout"), ("NOT_FOUND", ""), NOTHING_LISTED, PayStatus.UNKNOWN),
        (("INTERNAL", "PAYMENT_FAILED"), ("INTERNAL", "NOT_FOUND"), NOTHING_LISTED, PayStatus.UNKNOWN),
        (("INTERNAL", "INSUFFICIENT_BALANCE"), ("NOT_FOUND", ""), NOTHING_LISTED, PayStatus.FAILED),
        (("QUOTA_EXCEEDED", "x"), ("NOT_FOUND", ""), NOTHING_LISTED, PayStatus.FAILED),
        (("PAYMENT_FAILED", "x"), {"type": "outgoing", "state": "failed"}, NOTHING_LISTED, PayStatus.FAILED),
        (("PAYMENT_FAILED", "x"), {"type": "outgoing", "state": "pending"}, NOTHING_LISTED, PayStatus.PENDING),
        (("PAYMENT_FAILED", "x"), {"type": "outgoing", "settled_at": 7}, NOTHING_LISTED, PayStatus.SETTLED),
        (("OTHER", "x"), ("NOT_FOUND", ""), [{"state": "settled"}], PayStatus.SETTLED),
        (("OTHER", "x"), ("NOT_FOUND", ""), [{"state": "pending"}], PayStatus.PENDING),
        # Between two accounts of nwc-enclaved: no preimage, and listed as its payee's.
        ({"preimage": "-"}, {"type": "incoming", "state": "settled", "preimage": "-"}, NOTHING_LISTED, PayStatus.SETTLED),
        ({"preimage": "-"}, {"type": "incoming", "state": "pending"}, NOTHING_LISTED, PayStatus.UNKNOWN),
    ],
)  # fmt: skip
async def test_what_a_payment_came_to(book, pay, lookup, listed, status):
    minted = book.make_invoice("x", 1_000, "d", None, 600, SystemClock().now())
    payment_hash = minted["payment_hash"]
    if isinstance(lookup, dict):
        lookup = {"payment_hash": payment_hash} | lookup
    if isinstance(listed, list):
        listed = {
            "transactions": [
                {"payment_hash": payment_hash, "type": "outgoing"} | tx for tx in listed
            ]
        }
    alter = says(pay_invoice=pay, lookup_invoice=lookup, list_transactions=listed)
    async with running(book, alter=alter) as wallet:
        assert status is (await wallet.pay(minted["invoice"], 1_000, None)).status


async def test_a_list_that_has_no_end_proves_no_absence(book):
    page = {"transactions": [{"payment_hash": "ab" * 32, "type": "outgoing"}] * 20}
    alter = says(lookup_invoice=("NOT_FOUND", ""), list_transactions=page)
    async with running(book, alter=alter) as wallet:
        found = await wallet.look_up_payment("cd" * 32, None, 0)
        assert (PayStatus.ABSENT, {Book.LOOKUP}) == (found.status, found.books)


PAYEE = SecretKey.generate().pubkey


async def hint_of(wallet, payment_hash):
    with trio.fail_after(10):
        async for hint in wallet.hints:
            if hint.payment_hash == payment_hash:
                return hint
    return None


async def test_the_answer_to_a_payment_is_heard_when_it_comes_late(book):
    def slow(service, send):
        async def altered(kind, content, tags):
            if kind == kinds.WALLET_RESPONSE and book.__dict__.get("slow"):
                await trio.sleep(1.5)
            if kind not in (kinds.WALLET_NOTIFICATION, kinds.WALLET_NOTIFICATION_NIP04):
                await send(kind, content, tags)

        return altered

    async with running(book, alter=slow) as wallet:
        book.fund("f", wallet.test_admin.pubkey, 100_000)
        minted = book.make_invoice(PAYEE, 1_000, "d", None, 600, SystemClock().now())
        book.slow = True
        assert PayStatus.UNKNOWN is (await wallet.pay(minted["invoice"], 1_000, None)).status
        hint = await hint_of(wallet, minted["payment_hash"])
        assert PayStatus.SETTLED is hint.paid.status


async def test_a_notification_tells_what_a_payment_came_to(book):
    async with running(book) as wallet:
        book.fund("f", wallet.test_admin.pubkey, 100_000)
        minted = book.make_invoice(PAYEE, 1_000, "d", None, 600, SystemClock().now())
        await wallet.pay(minted["invoice"], 1_000, None)
        hint = await hint_of(wallet, minted["payment_hash"])
        assert PayStatus.SETTLED is hint.paid.status


async def test_what_it_holds(book):
    async with running(book) as wallet:
        book.fund("f", wallet.test_admin.pubkey, 123_000)
        assert 123_000 == await wallet.balance(None)
        assert 0 == await wallet.balance(SecretKey.generate())


@pytest.mark.parametrize(
    "balance", [{"balance": "1"}, {"balance": -1}, {}, ("NOT_IMPLEMENTED", "")]
)
async def test_a_balance_that_is_none_is_not_believed(book, balance):
    async with running(book, alter=says(get_balance=balance)) as wallet:
        assert WalletProblem.REFUSED is await wallet.balance(None)


async def test_silence_is_unknown_never_failed(book):
    def mute(service, send):
        async def altered(kind, content, tags):
            if "paid" in book.__dict__ or kind != kinds.WALLET_RESPONSE:
                return
            await send(kind, content, tags)

        return altered

    async with running(book, alter=mute) as wallet:
        minted = await wallet.make_own_invoice(1_000, "x")
        book.paid = True
        assert PayStatus.UNKNOWN is (await wallet.pay(minted.bolt11, 1_000, None)).status
        assert IncomingState.UNKNOWN is (await wallet.look_up(minted.payment_hash, None)).state
        assert (
            PayStatus.UNKNOWN
            is (await wallet.look_up_payment(minted.payment_hash, None, 0)).status
        )
        assert WalletProblem.UNAVAILABLE is await wallet.make_invoice(wanted())


async def test_requests_expire_so_that_unknown_comes_to_an_end(book):
    now = SystemClock().now()
    async with running(book) as wallet:
        request = build_request(
            wallet.test_admin,
            wallet.service_pubkey,
            "pay_invoice",
            {},
            now=now,
            valid_s=60,
            use_nip44=True,
        )
        assert str(now + 60) == request.tag("expiration")


async def test_the_dev_wallets_ledger_never_creates_money(book, tmp_path):
    now = SystemClock().now()
    book.fund("once", "a", 10_000)
    book.fund("once", "a", 10_000)
    assert 10_000 == book.balance("a")
    invoice = book.make_invoice("b", 4_000, "d", None, 600, now)["invoice"]
    book.pay("a", invoice, now)
    with pytest.raises(WalletError, match="already"):
        book.pay("a", invoice, now)
    with pytest.raises(WalletError, match="too low"):
        book.pay("a", book.make_invoice("b", 7_000, "d", None, 600, now)["invoice"], now)
    assert (6_000, 4_000) == (book.balance("a"), book.balance("b"))
    with closing(WalletBook(tmp_path / "wallet.sqlite")) as again:
        assert (6_000, 4_000) == (again.balance("a"), again.balance("b"))
