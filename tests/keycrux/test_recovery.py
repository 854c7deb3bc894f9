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
from keycrux_client.shares import DiskKey, Head, split

KEY, OTHER = DiskKey(b"k" * 32), DiskKey(b"o" * 32)
OLD, HEAD, FORK, NEW = Head(4, "aa"), Head(5, "bb"), Head(5, "cc"), Head(6, "dd")
NONE = GetReply(Got.NONE)
SILENT = GetReply(Got.SILENT)
# What services may have said: (asked, answered, held).
SAID = [(0, 0, 0), (2, 0, 0), (2, 1, 0), (2, 2, 0), (2, 1, 1), (2, 2, 1), (2, 2, 2)]
# What came of the values: keys, whether they open the backup, and what is the newest that is known.
CANDIDATES = {
    "none": ((), None),
    "does not open": ((Candidate(OTHER, None),), HEAD),
    "opens": ((Candidate(KEY, HEAD),), HEAD),
    "opens, anchor lags": ((Candidate(KEY, HEAD),), OLD),
    "opens, no anchor": ((Candidate(KEY, HEAD),), None),
    "opens, but is old": ((Candidate(KEY, HEAD),), NEW),
    "opens, but is a fork": ((Candidate(KEY, HEAD),), FORK),
    "two keys, one opens": ((Candidate(OTHER, None), Candidate(KEY, HEAD)), HEAD),
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
    candidates, newest = CANDIDATES[found]
    decision = decide(backup, Escrow(*said, newest, candidates), forget_state=forget)
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
        candidates, newest = CANDIDATES[found]
        decision = decide(Backup.PRESENT, Escrow(*said, newest, candidates), forget_state=True)
        assert not isinstance(decision, CreateFresh)


def opens(key):
    return HEAD if key == KEY else None


def held(*texts):
    return [GetReply(Got.HELD, text) for text in texts]


@pytest.mark.parametrize("services", [1, 2, 3, 4, 5])
def test_from_replies_to_the_key(services):
    replies = held(*split(KEY, HEAD, services))
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
    ["", "garbage", "{}", "[]", "null", '{"v":1}', '{"v":2,"n":1,"hash":"","k":1,"set":"a","key":"00"}', "AGE-SECRET-KEY-1",
     '{"v":1,"n":-1,"hash":"","k":1,"set":"a","key":"00"}', '{"v":1,"n":1,"hash":"","k":1,"set":"a","key":"zz"}',
     '{"v":1,"n":true,"hash":"","k":1,"set":"a","key":"00"}', '{"v":1,"n":1,"hash":"","k":2,"set":"a","share":"academic"}'],
)  # fmt: skip
def test_services_that_lie_yield_nothing_and_spoil_nothing(lie):
    good = split(KEY, HEAD, 3)
    escrow = sum_up(held(lie, *good[:2]), opens)
    assert KEY == decide(Backup.PRESENT, escrow).key
    alone = sum_up(held(lie), opens)
    assert isinstance(decide(Backup.PRESENT, alone), Halt)
    assert isinstance(decide(Backup.ABSENT, alone), Halt), "it holds something, whatever that is"


def test_a_service_with_the_share_of_another_set_or_a_forged_one():
    good, foreign = split(KEY, HEAD, 3), split(OTHER, HEAD, 3)
    escrow = sum_up(held(foreign[0], good[1], good[2]), opens)
    assert KEY == decide(Backup.PRESENT, escrow).key
    value = json.loads(good[0])
    words = value["share"].split()
    value["share"] = " ".join([*words[:-1], "academic" if words[-1] != "academic" else "acid"])
    forged = json.dumps(value)
    escrow = sum_up(held(forged, good[1], good[2]), opens)
    assert KEY == decide(Backup.PRESENT, escrow).key


def test_two_services_that_disagree():
    ours, theirs = split(KEY, HEAD, 1), split(OTHER, HEAD, 1)
    assert KEY == decide(Backup.PRESENT, sum_up(held(*ours, *theirs), opens)).key
    older = split(KEY, OLD, 1)
    assert KEY == decide(Backup.PRESENT, sum_up(held(*ours, *older), opens)).key
    newer = split(OTHER, NEW, 1)
    decision = decide(Backup.PRESENT, sum_up(held(*ours, *newer), opens))
    assert isinstance(decision, Halt)
    assert "old state" in decision.reason


def test_silence_is_never_taken_for_none():
    for replies in ([SILENT], [SILENT, SILENT], [NONE, SILENT], []):
        decision = decide(Backup.ABSENT, sum_up(replies, opens))
        assert isinstance(decision, Halt)
        assert decision.retry
    assert CreateFresh() == decide(Backup.ABSENT, sum_up([NONE, NONE], opens))
