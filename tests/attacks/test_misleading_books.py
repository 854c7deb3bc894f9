"""Books of wallets that mislead: what they leave out, and what a notification says, is not the end of a payment."""

from contextlib import closing

import pytest

from bot.devstack.wallet_book import WalletBook, WalletError
from handlers.domain.evidence import Book
from handlers.ports import PayStatus
from handlers.records import OutgoingState
from nips import kinds
from nips.nip47 import WalletCode, seal
from tests.adapters.test_nwc_wallet import hint_of, replies, running, says
from tests.attacks.test_paid_twice import outgoing, stopped_with, withdraw


async def test_a_book_that_shows_failed_payments_may_still_leave_out_those_on_their_way(world):
    """An invoice without a route makes the witness, one that is held is "absent": paid back, and paid."""
    pubkey = await stopped_with(world, 1_000)
    world.wallet.shows = frozenset({PayStatus.SETTLED, PayStatus.FAILED})
    world.wallet.next_pay = PayStatus.FAILED
    await withdraw(world, pubkey, 100_000)
    world.wallet.next_pay = PayStatus.UNKNOWN
    held, _ = await withdraw(world, pubkey, 900_000)
    await world.run(1_200, step_s=60)
    world.wallet.finish(held.payment_hash, PayStatus.SETTLED)
    _, again = await withdraw(world, pubkey, 900_000)

    assert "insufficient-balance" == getattr(again, "code", PayStatus.SETTLED).value
    await world.run(1_200, step_s=60)
    assert OutgoingState.SETTLED is (await outgoing(world, held.payment_hash)).state
    assert 0 <= await world.balance("revenue")


@pytest.fixture
def book(tmp_path):
    with closing(WalletBook(tmp_path / "wallet.sqlite")) as book:
        yield book


async def test_a_notification_that_a_payment_failed_is_a_hint_to_ask(book):
    """ "payment_sent", and in it "failed": no book shows that, and the money would be given back at once."""
    async with running(book) as wallet:
        service, us = wallet.test_service, wallet.test_admin.pubkey
        body = {
            "notification_type": "payment_sent",
            "notification": {"payment_hash": "ab" * 32, "type": "outgoing", "state": "failed"},
        }
        content = seal(service._key, us, body, use_nip44=True)
        await service._send(kinds.WALLET_NOTIFICATION, content, [("p", us)])
        hint = await hint_of(wallet, "ab" * 32)
        assert PayStatus.UNKNOWN is hint.paid.status


NOT_FOUND = WalletError(WalletCode.NOT_FOUND, "")


def page(hashes):
    return {
        "transactions": [
            {"payment_hash": h, "type": "outgoing", "state": "settled"} for h in hashes
        ]
    }


@pytest.mark.parametrize("most", [1, 7, 20])
async def test_a_wallet_that_pages_by_fewer_than_asked_has_not_come_to_its_end(book, most):
    """The payment is on the second page; the first was taken for all there is."""
    listed = [f"{number:064x}" for number in range(most + 1)]

    def pages(method, params):
        if method != "list_transactions":
            return NOT_FOUND if method == "lookup_invoice" else None
        return page(listed[params["offset"] :][:most])

    async with running(book, alter=replies(pages)) as wallet:
        found = await wallet.look_up_payment(listed[-1], None, 0)
        assert PayStatus.SETTLED is found.status
        absent = await wallet.look_up_payment("f" * 64, None, 0)
        assert {Book.LOOKUP, Book.LIST} == absent.books


async def test_a_wallet_that_knows_no_offset_shows_no_end(book):
    alter = says(lookup_invoice=("NOT_FOUND", ""), list_transactions=page(["ab" * 32]))
    async with running(book, alter=alter) as wallet:
        absent = await wallet.look_up_payment("cd" * 32, None, 0)
        assert {Book.LOOKUP} == absent.books
