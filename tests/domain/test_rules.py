"""The rules: pricing, metering, lifecycle, capacity, ports, images, plan, ledger."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from handlers.domain import ledger
from handlers.domain.capacity import Capacity, NoCapacity, reserve, reserve_unpaid
from handlers.domain.image import BadImageRef, parse_image_ref
from handlers.domain.ledger import MAIN_WALLET, Entry, container_account
from handlers.domain.lifecycle import (
    HOLDS_UNITS,
    TABLE,
    Happening,
    State,
    needs_capacity,
    next_state,
)
from handlers.domain.limits import UnitSize, image_fits, limits_for
from handlers.domain.meter import Account, Meter, Next, Rhythm, Run, due
from handlers.domain.plan import Do, Found, Live, Wanted, plan
from handlers.domain.ports_pool import PortRange, allocate
from handlers.domain.pricing import Tariff
from handlers.domain.trial import Progress, Trial, asked_for, ended, started, stayed_up

TARIFF = Tariff()


# -- pricing ----------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.lists(st.integers(0, 100_000), max_size=30))
def test_splitting_time_never_changes_the_price(units, parts_ms):
    total, remainder = 0, 0
    for part in parts_ms:
        msat, remainder = TARIFF.cost(units, part, remainder)
        total += msat

    assert TARIFF.cost(units, sum(parts_ms), 0) == (total, remainder)


@given(st.integers(1, 50), st.integers(0, 10**7), st.integers(0, 3_599_999))
def test_affordable_time_is_exactly_what_the_balance_covers(units, balance, remainder):
    most = TARIFF.affordable_ms(units, balance, remainder)

    assert TARIFF.cost(units, most, remainder)[0] <= balance or most == 0
    assert TARIFF.cost(units, most + 1, remainder)[0] > balance


def test_the_default_tariff_is_five_sat_per_unit_and_hour():
    assert TARIFF.cost(1, 3_600_000, 0) == (5_000, 0)
    assert TARIFF.cost(1, 1_000, 0) == (1, 1_400_000)


# -- metering ---------------------------------------------------------------------------------------

RUN = Run("boot", 7, 100_000)
RHYTHM = Rhythm()


def account(balance=10**9, meter=None, **changes):
    return Account(
        **(
            {
                "units": 1,
                "tariff": TARIFF,
                "balance_msat": balance,
                "meter": meter,
                "low_noticed": False,
            }
            | changes
        )
    )


def test_a_run_that_is_not_standing_yet_costs_nothing():
    assert due(account(), RUN, 102_999, RHYTHM) is None


def test_a_standing_run_is_charged_from_its_start():
    found = due(account(), RUN, 103_000, RHYTHM)

    assert (found.from_ms, found.amount_msat, found.then) == (100_000, 4, Next.GO_ON)


def test_within_the_charge_interval_nothing_is_written():
    assert due(account(meter=Meter("boot", 7, 150_000, 0)), RUN, 160_000, RHYTHM) is None


def test_after_our_crash_the_gap_of_the_same_run_is_charged():
    found = due(account(meter=Meter("boot", 7, 150_000, 0)), RUN, 1_150_000, RHYTHM)

    assert TARIFF.cost(1, 1_000_000, 0)[0] == found.amount_msat


@pytest.mark.parametrize(
    "meter", [Meter("other boot", 7, 9_000_000, 5), Meter("boot", 6, 90_000, 5)]
)
def test_another_boot_or_start_charges_nothing_for_the_gap(meter):
    found = due(account(meter=meter), RUN, 110_000, RHYTHM)

    assert found.from_ms == 100_000
    assert TARIFF.cost(1, 10_000, 5)[0] == found.amount_msat


def test_it_pauses_before_the_tick_that_is_not_paid_for():
    balance = TARIFF.cost(1, 10_000, 0)[0]
    found = due(account(balance), RUN, 100_000 + 9_500, RHYTHM)

    assert Next.PAUSE is found.then
    assert found.amount_msat <= balance


def test_when_we_are_late_the_balance_is_used_up_and_no_more():
    found = due(account(5), RUN, 10**9, RHYTHM)

    assert (found.amount_msat, found.then) == (5, Next.PAUSE)


def test_low_balance_warns_once():
    balance = TARIFF.cost(1, 300_000, 0)[0]

    assert Next.WARN is due(account(balance), RUN, 110_000, RHYTHM).then
    assert Next.GO_ON is due(account(balance, low_noticed=True), RUN, 110_000, RHYTHM).then


@given(st.integers(0, 10**6), st.integers(0, 10**8), st.none() | st.integers(0, 10**8))
def test_never_more_than_the_balance_whatever_the_times(balance, now_ms, charged_until):
    meter = Meter("boot", 7, charged_until, 0) if charged_until is not None else None
    found = due(account(balance, meter), RUN, now_ms, RHYTHM)

    assert found is None or 0 <= found.amount_msat <= balance


# -- lifecycle --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("happening", Happening)
def test_every_cell_of_the_table(state, happening):
    following = next_state(state, happening)

    assert following == TABLE.get((state, happening))
    if state is State.STOPPED:
        assert following is None, "what is deleted stays deleted"
    if happening is Happening.STOP_CONFIRMED and state is not State.STOPPED:
        assert following is State.STOPPED
    if following is State.DEPLOYED:
        assert happening in (Happening.PAID, Happening.RESTART_ASKED)
    if following is not None and needs_capacity(state, following):
        assert state not in HOLDS_UNITS


def test_every_state_can_be_left_but_the_last():
    for state in State:
        assert (state is State.STOPPED) == (not any(s is state for s, _ in TABLE))


# -- capacity, ports, limits ------------------------------------------------------------------------


def test_capacity():
    def unpaid(held=0, waiting=0, of_caller=0, units_of_caller=0, units=1):
        return reserve_unpaid(
            Capacity(max_waiting_units_per_caller=20),
            held_units=held,
            waiting_units=waiting,
            unpaid_of_caller=of_caller,
            unpaid_units_of_caller=units_of_caller,
            units=units,
        )

    assert unpaid(units_of_caller=19) is None
    assert NoCapacity.TOO_MANY_WAITING is unpaid(units_of_caller=20)

    assert reserve(Capacity(), held_units=99, units=1) is None
    assert NoCapacity.NOT_ENOUGH_UNITS is reserve(Capacity(), held_units=99, units=2)
    assert NoCapacity.NOT_ENOUGH_UNITS is unpaid(held=99, units=2)
    assert NoCapacity.TOO_MANY_WAITING is unpaid(of_caller=3)
    assert unpaid(held=50, waiting=49) is None
    assert NoCapacity.UNPAID_FULL is unpaid(held=50, waiting=50)


@given(st.sets(st.integers(100, 110)), st.integers(0, 12))
def test_ports_are_free_distinct_and_in_range(taken, count):
    found = allocate(PortRange(100, 110), taken, count)

    if found is None:
        assert count > 11 - len(taken)
    else:
        assert len(set(found)) == count
        assert not taken.intersection(found)
        assert all(100 <= port <= 110 for port in found)


def test_limits_grow_with_units_and_always_let_an_init_run():
    one, ten = limits_for(1, UnitSize()), limits_for(10, UnitSize())

    assert (one.cpu_quota_us, one.memory_bytes, one.pids) == (10_000, 50_000_000, 16)
    assert (ten.cpu_quota_us, ten.memory_bytes, ten.pids) == (100_000, 500_000_000, 100)
    assert [limits_for(units, UnitSize()).nofile for units in (1, 4, 10, 5_000)] == [
        1_024,
        1_024,
        2_560,
        1_048_576,
    ]
    assert image_fits(40_000_000, one)
    assert not image_fits(40_000_001, one)


# -- images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("user/app:2", "docker.io/user/app:2"),
        ("docker.io/user/app", "docker.io/user/app:latest"),
        ("docker://ghcr.io/a/b:1", "ghcr.io/a/b:1"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("ghcr.io/a/b@sha256:" + "0" * 64, "ghcr.io/a/b@sha256:" + "0" * 64),
        ("ghcr.io/a/b:v1@sha256:" + "0" * 64, "ghcr.io/a/b:v1@sha256:" + "0" * 64),
        ("10.0.0.1:5000/a", "10.0.0.1:5000/a:latest"),
    ],
)
def test_image_references(text, shown):
    assert shown == str(parse_image_ref(text))
    assert parse_image_ref(shown) == parse_image_ref(text)


@pytest.mark.parametrize(
    "text",
    ["", "../etc", "UPPER/case", "a b", "x" * 600, "host.com/", "a@sha256:12", "a@md5:" + "0" * 32, "a:ta/g", "a:-x",
     "-bad.com/a", "host..com/a", "host.com:99999999/a", "http://x/y", "a//b", "a:", "ghcr.io/a\n", "ghcr.io:0/a"],
)  # fmt: skip
def test_bad_image_references(text):
    with pytest.raises(BadImageRef):
        parse_image_ref(text)


@given(st.text(max_size=80))
def test_image_references_raise_only_one_exception(text):
    try:
        assert parse_image_ref(str(parse_image_ref(text)))
    except BadImageRef:
        pass


# -- plan -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("progress", Progress)
@pytest.mark.parametrize("may_start", [True, False])
@pytest.mark.parametrize(
    "found", [None, *(Found(live, 1) for live in Live), Found(Live.RUNNING, 2)]
)
def test_plan_every_cell(state, progress, may_start, found):
    wanted = Wanted(state, 1, progress, may_start=may_start)
    do = plan({"a": wanted}, {"a": found} if found else {}).get("a")

    running = found is not None and found.live is Live.RUNNING
    if state is not State.DEPLOYED:
        assert do not in (Do.START, Do.RECREATE), "what is not paid for is never started"
        assert not running or do in (Do.HALT, Do.REMOVE), (
            "what is not paid for does not go on running"
        )
    if not may_start:
        assert do is not Do.START, "its time has not come"
    if state is State.DEPLOYED and found == Found(Live.RUNNING, 1):
        assert do is None
    if state is State.DEPLOYED and found is None:
        assert (do is Do.START) == may_start
    if state is State.DEPLOYED and found == Found(Live.EXITED, 1):
        assert (do is Do.NOTE_END) == (progress is not Progress.DUE), "each end is noted once"


# -- trial ------------------------------------------------------------------------------------------


def test_an_image_that_never_stays_up_has_three_free_tries_and_no_more():
    trial, free = Trial(), 0
    for _ in range(10):
        free += not trial.is_charged_from_start
        trial = ended(started(trial), 100)
        trial = asked_for(trial) if trial.is_hopeless else trial

    assert 3 == free


def test_waiting_grows_to_minutes_and_comes_to_an_end():
    trial, waits = stayed_up(Trial(), long=False), []
    while not trial.is_hopeless:
        trial = ended(started(trial), 1_000)
        waits.append(trial.retry_at - 1_000)

    assert [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] == waits


@pytest.mark.parametrize(("long", "crashes"), [(True, 0), (False, 2)])
def test_only_a_long_run_forgets_the_crashes_before_it(long, crashes):
    assert crashes == stayed_up(Trial(proven=True, crashes=2), long=long).crashes


def test_strays_of_ours_are_removed():
    assert plan({}, {"stray": Found(Live.RUNNING, 1)}) == {"stray": Do.REMOVE}


# -- ledger -----------------------------------------------------------------------------------------


def test_an_entry_that_does_not_sum_to_zero_cannot_be_made():
    with pytest.raises(ValueError, match="zero"):
        Entry("k", {"a": 1})


class LedgerMachine(RuleBasedStateMachine):
    """Any order of payments, charges, withdrawals, replays: zero sum, nothing negative, nothing twice."""

    payments = Bundle("payments")

    def __init__(self):
        super().__init__()
        import sqlite3

        from bot.adapters.store.sqlite import SqliteTx, migrate

        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.row_factory = sqlite3.Row
        migrate(self.db)
        self.tx = SqliteTx(self.db)
        self.balance, self.count, self.open = 0, 0, []

    def teardown(self):
        self.db.close()

    @rule(target=payments, amount=st.integers(1, 10**6))
    def pay(self, amount):
        self.count += 1
        entry = ledger.payment(f"{self.count:064x}", "c", MAIN_WALLET, amount)
        assert self.tx.ledger.post(entry, 0)
        self.balance += amount
        return entry

    @rule(entry=payments)
    def pay_again(self, entry):
        assert not self.tx.ledger.post(entry, 0)

    @rule(amount=st.integers(1, 10**6))
    def charge(self, amount):
        self.count += 1
        entry = ledger.charge("c", "boot", 1, self.count, amount)
        self._may_fail(entry, amount)

    @rule(amount=st.integers(1, 10**6), reserve=st.integers(0, 1_000))
    def withdraw(self, amount, reserve):
        self.count += 1
        entry = ledger.reserve_outgoing(str(self.count), container_account("c"), amount, reserve)
        if self._may_fail(entry, amount + reserve):
            self.open.append((str(self.count), amount, reserve))

    @precondition(lambda self: self.open)
    @rule(paid=st.booleans(), fee=st.integers(0, 2_000), data=st.data())
    def conclude(self, paid, fee, data):
        payment_id, amount, reserve = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        source = container_account("c")
        done = ledger.complete_outgoing(
            payment_id, source, MAIN_WALLET, amount, reserve, fee, self.tx.ledger.balance(source)
        )
        undone = ledger.release_outgoing(payment_id, source, amount, reserve)
        first, second = (done, undone) if paid else (undone, done)
        assert self.tx.ledger.post(first, 0)
        assert not self.tx.ledger.post(second, 0), "the first final word counts"
        self.balance += reserve - min(fee, reserve + self.balance) if paid else amount + reserve

    def _may_fail(self, entry, amount):
        import sqlite3

        self.db.execute("SAVEPOINT s")
        try:
            posted = self.tx.ledger.post(entry, 0)
        except sqlite3.IntegrityError:
            self.db.execute("ROLLBACK TO s")
            assert amount > self.balance
            return False
        assert amount <= self.balance
        self.balance -= amount
        return posted

    @invariant()
    def books_balance(self):
        from tests.conftest import audit_books

        audit_books(self.db)
        assert self.balance == self.tx.ledger.balance(container_account("c"))


TestLedger = LedgerMachine.TestCase
