"""A payment that may still go through is never given back: not for a wallet's error, and not for its silence."""

import pytest

from handlers.domain.evidence import MARGIN_S, Book, Witnesses, has_failed, is_over
from handlers.domain.ledger import container_account
from handlers.ports import PayResult, PayStatus
from handlers.records import OutgoingState
from nips.keys import SecretKey

DAY_S = 24 * 3_600
HTLC_S = 15 * DAY_S
LOOKUP, LIST = frozenset({Book.LOOKUP}), frozenset({Book.LIST})
SHOWS_NOTHING = frozenset()
SHOWS_SETTLED = frozenset({PayStatus.SETTLED})


@pytest.mark.parametrize(
    ("absent_from", "witnesses", "late_s", "failed"),
    [
        (LOOKUP, Witnesses(unsettled=LOOKUP), MARGIN_S, False),
        (LOOKUP, Witnesses(unsettled=LOOKUP), MARGIN_S + 1, True),
        (LOOKUP, Witnesses(settled=LOOKUP), MARGIN_S + 1, False),
        (LOOKUP, Witnesses(settled=LOOKUP), HTLC_S, False),
        (LOOKUP, Witnesses(settled=LOOKUP), HTLC_S + 1, True),
        (LOOKUP, Witnesses(settled=LIST, unsettled=LIST), HTLC_S + 1, False),
        (LOOKUP, Witnesses(), 100 * HTLC_S, False),
        (frozenset(), Witnesses(LOOKUP, LOOKUP), 100 * HTLC_S, False),
        (LOOKUP | LIST, Witnesses(unsettled=LIST), MARGIN_S + 1, True),
    ],
)
def test_absence_counts_only_beside_a_witness_in_the_same_book(
    absent_from, witnesses, late_s, failed
):
    assert failed == has_failed(absent_from, witnesses, 1_000, 1_000 + late_s, HTLC_S)


def test_a_request_is_over_after_its_margin():
    assert [False, False, True] == [
        is_over(1_000, at) for at in (0, 1_000 + MARGIN_S, 1_001 + MARGIN_S)
    ]


async def withdraw(world, pubkey, amount_msat):
    invoice = world.wallet.mint("stranger", amount_msat, None, 600)
    world.wallet.invoices.pop(invoice.payment_hash)
    return invoice, await world.call("withdraw", pubkey=pubkey, invoice=invoice.bolt11)


async def stopped_with(world, sat):
    """A container whose balance does not change by itself."""
    pubkey = await world.deployed(amount_sat=sat)
    await world.call("stop", pubkey=pubkey, force=True)
    await world.turn()
    return pubkey


async def outgoing(world, payment_hash):
    return await world.store.read(lambda tx: tx.outgoing.find_by_hash(payment_hash))


async def test_failed_then_not_found_then_settled_is_paid_once(world):
    pubkey = await stopped_with(world, 1_000)
    world.wallet.says_failed, world.wallet.shows = True, SHOWS_NOTHING
    world.wallet.next_pay = PayStatus.UNKNOWN
    invoice, said = await withdraw(world, pubkey, 900_000)
    await world.run(2 * DAY_S, step_s=3_600)

    assert "unknown" == said["state"]
    assert 1_000_000 - 900_000 - 19_000 == await world.balance(container_account(pubkey))
    world.wallet.shows = SHOWS_SETTLED
    world.wallet.finish(invoice.payment_hash, PayStatus.SETTLED)
    await world.run(2 * 3_600, step_s=600)
    assert OutgoingState.SETTLED is (await outgoing(world, invoice.payment_hash)).state
    assert 100_000 == await world.balance(container_account(pubkey))
    await world.audit()


async def test_a_wallet_that_never_lists_outgoing_payments_proves_nothing_by_that(world):
    """1,800 sat out of 1,000: the settled payment was answered NOT_FOUND, given back, and withdrawn again."""
    pubkey = await stopped_with(world, 1_000)
    world.wallet.answer_pay, world.wallet.shows = False, SHOWS_NOTHING
    first, _ = await withdraw(world, pubkey, 900_000)
    await world.run(2 * HTLC_S, step_s=DAY_S)
    _, refused = await withdraw(world, pubkey, 900_000)

    assert "insufficient-balance" == refused.code.value
    assert 1 == world.wallet.pays_sent
    assert OutgoingState.UNKNOWN is (await outgoing(world, first.payment_hash)).state


async def test_a_wallet_that_lists_settled_ones_only_is_waited_for_as_long_as_a_route_can_hold(
    world,
):
    pubkey = await stopped_with(world, 1_000)
    world.wallet.shows = SHOWS_SETTLED
    await withdraw(world, pubkey, 100_000)
    world.wallet.next_pay = PayStatus.UNKNOWN
    held, _ = await withdraw(world, pubkey, 400_000)
    await world.run(14 * DAY_S, step_s=DAY_S)
    assert OutgoingState.UNKNOWN is (await outgoing(world, held.payment_hash)).state

    await world.run(2 * DAY_S, step_s=DAY_S)
    assert OutgoingState.FAILED is (await outgoing(world, held.payment_hash)).state
    assert 900_000 == await world.balance(container_account(pubkey))


async def test_the_owner_is_told_once_that_the_money_is_held(world):
    pubkey = await stopped_with(world, 1_000)
    world.wallet.shows, world.wallet.answer_pay = SHOWS_NOTHING, False
    invoice, _ = await withdraw(world, pubkey, 500_000)
    await world.run(3_600, step_s=60)
    told = await world.store.read(lambda tx: tx.outbox.list_due(world.clock.now() + DAY_S, 100))
    row = await outgoing(world, invoice.payment_hash)

    assert row.told
    await world.run(3_600, step_s=60)
    again = await world.store.read(lambda tx: tx.outbox.list_due(world.clock.now() + DAY_S, 100))
    assert len(told) == len(again)


async def test_an_answer_that_comes_late_is_heard(world):
    from handlers.duties.outgoing import hear

    pubkey = await stopped_with(world, 1_000)
    world.wallet.shows, world.wallet.answer_pay = SHOWS_NOTHING, False
    invoice, _ = await withdraw(world, pubkey, 500_000)
    await hear(world.ctx, invoice.payment_hash, PayResult(PayStatus.SETTLED, 0, "00" * 32))

    assert OutgoingState.SETTLED is (await outgoing(world, invoice.payment_hash)).state
    assert 500_000 == await world.balance(container_account(pubkey))
    await world.audit()


async def test_what_was_given_back_and_is_paid_after_all_is_taken_again(world):
    """A wallet that says "failed" in its own book and pays later: the books stay true, the loss is bounded."""
    from handlers.duties.outgoing import hear

    pubkey = await stopped_with(world, 1_000)
    world.wallet.next_pay = PayStatus.UNKNOWN
    invoice, _ = await withdraw(world, pubkey, 500_000)
    world.wallet.payments[invoice.payment_hash]["status"] = PayStatus.FAILED
    await world.run(20, step_s=10)
    assert 1_000_000 == await world.balance(container_account(pubkey))
    world.wallet.payments[invoice.payment_hash]["status"] = PayStatus.UNKNOWN
    world.wallet.finish(invoice.payment_hash, PayStatus.SETTLED)
    for _ in range(2):
        await hear(world.ctx, invoice.payment_hash, PayResult(PayStatus.SETTLED, 0, "00" * 32))

    assert 500_000 == await world.balance(container_account(pubkey))
    await world.audit()


async def test_fees_that_the_last_hop_keeps_are_taken_from_us_once_at_most(world):
    """300 sat of fees on 988, repeatably: the reserve learns the worst that was seen."""
    revenue = []
    for _ in range(4):
        pubkey = await stopped_with(world, 1_000)
        most = (await world.call("balance", SecretKey.generate().pubkey, pubkey=pubkey))[
            "withdrawable_sat"
        ]
        world.wallet.balances["wallet:main"] += (
            1_000_000  # others' money, which must not pay for it
        )
        world.wallet.fee_msat = most * 1_000 * 300 // 988
        await withdraw(world, pubkey, most * 1_000)
        revenue.append(await world.balance("revenue"))

    assert -300_000 < revenue[0] < 0
    assert [revenue[0]] * 3 == revenue[1:]
