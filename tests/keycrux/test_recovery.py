"""The decision, over its whole table: backup × what services say × what escrow knows × the operator's order."""

import json
from itertools import product

import pytest

from keycrux_client.protocol import GetReply, Got
from keycrux_client.recovery import (
    Backup,
    Candidate,
    CreateFresh,
    Escrow,
    Halt,
    Restore,
    decide,
    sum_up,
)
from keycrux_client.shares import DiskKey, Head
from tests.escrow import texts

KEY, OTHER = DiskKey(b"k" * 32), DiskKey(b"o" * 32)
OLD, HEAD, FORK, NEW = Head(1, 4, "aa"), Head(1, 5, "bb"), Head(1, 5, "cc"), Head(1, 6, "dd")
NONE = GetReply(Got.NONE)
SILENT = GetReply(Got.SILENT)
# What services may have said: (asked, answered, held).
SAID = [(0, 0, 0), (2, 0, 0), (2, 1, 0), (2, 2, 0), (2, 1, 1), (2, 2, 1), (2, 2, 2)]
# What came of the values: keys, whether they open the backup, and what is the newest that is known.
CANDIDATES = {
    "none": (),
    "does not open": (Candidate(OTHER, None, HEAD),),
    "opens": (Candidate(KEY, HEAD, HEAD),),
    "opens, anchor lags": (Candidate(KEY, HEAD, OLD),),
    "opens, no anchor": (Candidate(KEY, HEAD, None),),
    "opens, but is old": (Candidate(KEY, HEAD, NEW),),
    "opens, but is a fork": (Candidate(KEY, HEAD, FORK),),
    "two keys, one opens": (Candidate(OTHER, None, NEW), Candidate(KEY, HEAD, HEAD)),
}


def expected(backup, said, found, forget):
    asked, answered, held = said
    if backup is Backup.UNKNOWN:
        return "halt and retry"
    if answered == 0:
        return "halt and retry"
    if backup is Backup.ABSENT:
        if forget:
            return "fresh"
        if held:
            return "halt"
        return "fresh" if answered == asked else "halt and retry"
    if found in ("none", "does not open"):
        return "halt and retry"
    return "halt" if found in ("opens, but is old", "opens, but is a fork") else "restore"


CASES = [
    case
    for case in product(Backup, SAID, CANDIDATES, (False, True))
    # Without a value that is held, nothing can come of it.
    if case[1][2] or case[2] == "none"
]


@pytest.mark.parametrize(("backup", "said", "found", "forget"), CASES)
def test_every_row(backup, said, found, forget):
    decision = decide(backup, Escrow(*said, CANDIDATES[found]), forget_state=forget)
    match decision:
        case Restore(key, head):
            got = "restore"
            assert (KEY, HEAD) == (key, head)
        case CreateFresh(forgetting):
            got = "fresh"
            assert forgetting is (forget and said[2] > 0)
        case Halt(reason, retry):
            got = "halt and retry" if retry else "halt"
            assert reason
    assert expected(backup, said, found, forget) == got


def test_the_table_was_tried_whole(record_property):
    record_property("figure", f"rows of the recovery table tried: {len(CASES)}")
    assert 168 == len(CASES)


def test_no_order_makes_it_fresh_over_a_backup_that_is_there():
    for said, found in product(SAID, CANDIDATES):
        escrow = Escrow(*said, CANDIDATES[found])
        decision = decide(Backup.PRESENT, escrow, forget_state=True)
        assert not isinstance(decision, CreateFresh)


def opens(key):
    return HEAD if key == KEY else None


def held(*texts):
    return [GetReply(Got.HELD, text) for text in texts]


@pytest.mark.parametrize("services", [1, 2, 3, 4, 5])
def test_from_replies_to_the_key(services):
    replies = held(*texts(KEY, HEAD, services))
    assert KEY == decide(Backup.PRESENT, sum_up(replies, opens)).key
    # As many may be gone as a majority can spare.
    spare = services - (services // 2 + 1 if services >= 3 else 1)
    replies[:spare] = [SILENT] * spare
    assert KEY == decide(Backup.PRESENT, sum_up(replies, opens)).key
    if services >= 3:
        replies[spare] = NONE
        assert isinstance(decide(Backup.PRESENT, sum_up(replies, opens)), Halt)


@pytest.mark.parametrize(
    "lie",
    ["[" * 1_000, "", "garbage", "{}", "[]", "null", '{"v":1}', '{"v":2,"n":1,"hash":"","k":1,"set":"a","key":"00"}', "AGE-SECRET-KEY-1",
     '{"v":1,"n":-1,"hash":"","k":1,"set":"a","key":"00"}', '{"v":1,"n":1,"hash":"","k":1,"set":"a","key":"zz"}',
     '{"v":1,"n":true,"hash":"","k":1,"set":"a","i":0,"secret":"00","mac":""}', '{"v":1,"n":1,"hash":"","k":2,"set":"a","i":0,"secret":"academic","mac":""}',
     '{"v":1,"n":1,"hash":"","k":1,"set":"a","i":16,"secret":"00","mac":""}', '{"v":1,"n":9007199254740992,"hash":"","k":1,"set":"a","i":0,"secret":"00","mac":""}',
     '{"v":1,"n":1,"hash":"","k":1,"set":"","i":0,"secret":"00","mac":""}', '{"v":1,"n":1,"hash":"","k":99,"set":"a","i":0,"secret":"00","mac":""}'],
)  # fmt: skip
def test_services_that_lie_yield_nothing_and_spoil_nothing(lie):
    good = texts(KEY, HEAD, 3)
    escrow = sum_up(held(lie, *good[:2]), opens)
    assert KEY == decide(Backup.PRESENT, escrow).key
    alone = sum_up(held(lie), opens)
    assert isinstance(decide(Backup.PRESENT, alone), Halt)
    assert isinstance(decide(Backup.ABSENT, alone), Halt), "it holds something, whatever that is"


def test_a_service_with_the_share_of_another_set_or_a_forged_one():
    good, foreign = texts(KEY, HEAD, 3), texts(OTHER, HEAD, 3)
    escrow = sum_up(held(foreign[0], good[1], good[2]), opens)
    assert KEY == decide(Backup.PRESENT, escrow).key
    value = json.loads(good[0])
    words = value["parts"][0][3].split()
    value["parts"][0][3] = " ".join(
        [*words[:-1], "academic" if words[-1] != "academic" else "acid"]
    )
    escrow = sum_up(held(json.dumps(value), good[1], good[2]), opens)
    assert KEY == decide(Backup.PRESENT, escrow).key


def test_a_share_that_asks_for_hours_of_work_is_not_computed():
    """SLIP-39 lets a share name how long its secret is to be stretched."""
    import shamir_mnemonic

    (slow,) = shamir_mnemonic.generate_mnemonics(1, [(2, 3)], b"s" * 32, iteration_exponent=1)
    good = texts(KEY, HEAD, 3)
    value = json.loads(good[0])
    lies = [json.dumps(value | {"parts": [[2, "slow", n, part]]}) for n, part in enumerate(slow)]
    assert [KEY] == [c.key for c in sum_up(held(*lies, *good), opens).candidates]


def test_a_head_that_was_not_written_with_the_key_is_no_head():
    """One liar must not make us believe that a newer state exists, or keep us from going on."""
    good = texts(KEY, HEAD, 3)
    liar = json.dumps(json.loads(good[0]) | {"n": 2**53 - 1})
    assert KEY == decide(Backup.PRESENT, sum_up(held(liar, *good[1:]), opens)).key
    other = texts(OTHER, Head(1, 2**53 - 1, "ff"), 1)
    assert KEY == decide(Backup.PRESENT, sum_up(held(*other, *good), opens)).key


def test_two_services_that_disagree():
    ours, theirs = texts(KEY, HEAD, 1), texts(OTHER, HEAD, 1)
    assert KEY == decide(Backup.PRESENT, sum_up(held(*ours, *theirs), opens)).key
    older = texts(KEY, OLD, 1)
    assert KEY == decide(Backup.PRESENT, sum_up(held(*ours, *older), opens)).key
    newer = texts(KEY, NEW, 1)
    decision = decide(Backup.PRESENT, sum_up(held(*ours, *newer), opens))
    assert isinstance(decision, Halt)
    assert "old state" in decision.reason
    # Another life's key, however far it got, says nothing about ours.
    foreign = texts(OTHER, NEW, 1)
    assert KEY == decide(Backup.PRESENT, sum_up(held(*ours, *foreign), opens)).key


def test_silence_is_never_taken_for_none():
    for replies in ([SILENT], [SILENT, SILENT], [NONE, SILENT], []):
        decision = decide(Backup.ABSENT, sum_up(replies, opens))
        assert isinstance(decision, Halt)
        assert decision.retry
    assert CreateFresh() == decide(Backup.ABSENT, sum_up([NONE, NONE], opens))
    # A relay that did not say which services there are, or fewer services than there should be.
    assert isinstance(decide(Backup.ABSENT, sum_up([NONE, NONE], opens, unheard=1)), Halt)
