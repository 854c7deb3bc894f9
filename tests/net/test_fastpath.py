"""The fast path answers as `inspect` does, whatever came before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.packets import fastpath
from netstack.packets.fastpath import make_judge
from netstack.packets.packet import Malformed
from netstack.packets.policy import Guard, Verdict, inspect, rules_at_enclave, rules_at_parent
from tests.net.packets import ENCLAVE, ipv4, ipv6, offload, tcp
from tests.net.test_packets import TCP_GSO

PARENT = Guard(rules_at_parent((ENCLAVE, "fd00:118::2")))
INSIDE = Guard(rules_at_enclave((ENCLAVE,), ("10.200.0.0/16",)))
SEEN = [
    offload() + ipv4(),
    offload(**TCP_GSO) + tcp(b"x" * 3_000),
    offload(flags=1, start=20, offset=6) + ipv4(payload=b"x" * 100),
    offload() + ipv4(payload=b"", protocol=1),
    offload(**{**TCP_GSO, "gso": 5, "offset": 6}) + ipv4(payload=b"x" * 3_000),
    offload() + ipv6(),
]


def says(judge, packet):
    try:
        return judge(memoryview(packet), 0, len(packet))
    except Malformed as error:
        return str(error)


def slowly(guard):
    return lambda data, start, end: inspect(guard, data, start, end)


@pytest.mark.parametrize("packet", SEEN)
def test_what_passed_once_passes_again(packet):
    judge = make_judge(PARENT)

    assert [says(judge, packet) for _ in range(3)] == [Verdict.PASS] * 3


@pytest.mark.parametrize("guard", [PARENT, INSIDE])
@given(
    seen=st.sampled_from(SEEN),
    changes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 60),
    more=st.binary(max_size=40),
)
def test_any_change_of_what_passed_is_judged_as_if_it_were_new(guard, seen, changes, cut, more):
    judge = make_judge(guard)
    says(judge, seen)
    changed = bytearray(seen)
    for place, value in changes:
        changed[place % len(changed)] = value
    for packet in (bytes(changed), seen[: len(seen) - cut], seen + more):
        expected = says(slowly(guard), packet)

        assert says(judge, packet) == expected
        assert says(judge, packet) == expected


@pytest.mark.parametrize("total", range(0, 65_536, 251))
def test_a_total_length_that_lies_is_refused_though_the_flow_is_known(total):
    judge = make_judge(PARENT)
    good = ipv4()
    says(judge, offload() + good)
    lie = offload() + ipv4(total=total)

    assert says(judge, lie) == says(slowly(PARENT), lie)


def test_a_flood_of_flows_is_forgotten_again(monkeypatch):
    monkeypatch.setattr(fastpath, "_REMEMBER", 10)
    judge = make_judge(PARENT)
    (known,) = [
        cell.cell_contents for cell in judge.__closure__ if isinstance(cell.cell_contents, dict)
    ]
    for number in range(1_000):
        packet = offload() + ipv4(destination=f"5.5.{number >> 8}.{number & 255}")
        assert says(judge, packet) is Verdict.PASS
        assert len(known) <= 10
