"""Framing and the pumps: every decoder fed byte by byte, with garbage, giants, zeros and halves."""

import os
import socket
import subprocess
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.packets.framing import (
    HELLO_SIZE,
    MAX_PAYLOAD,
    PING,
    PING_FRAME,
    Hello,
    decode_hello,
    next_frame,
)
from netstack.packets.packet import Malformed
from netstack.packets.policy import Rules, rules_at_parent
from netstack.planes import counters
from netstack.planes.pump import Job, run
from tests.net.packets import ENCLAVE, frame, ipv4, offload

GOOD = offload() + ipv4()


@pytest.fixture
def pump():
    """An inbound pump at work: write to ``peer``, read what it gave to the device from ``device``."""
    started = []

    def start(rules=None, silence_s=5.0, heartbeat_s=5.0):
        rules = rules or rules_at_parent((ENCLAVE,))
        peer, stream = socket.socketpair()
        device, tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        stream.settimeout(None)
        stream.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO,
            int(silence_s).to_bytes(8, "little") + int(silence_s % 1 * 1e6).to_bytes(8, "little"),
        )  # fmt: skip
        shared = counters.create("test")
        job = Job("inbound", tun.fileno(), stream.detach(), shared.fd, heartbeat_s, rules)
        ended = []
        thread = threading.Thread(target=lambda: ended.append(run(job)), daemon=True)
        thread.start()
        started.append((peer, device, tun, job.stream_fd, shared))
        device.settimeout(5)
        peer.settimeout(5)

        def why():
            thread.join(5)
            assert not thread.is_alive()
            return ended[0]

        return peer, device, shared, why

    yield start
    for peer, device, tun, _, shared in started:
        peer.close()
        device.close()
        tun.close()
        shared.words.release()
        os.close(shared.fd)


def test_frames_fed_byte_by_byte_arrive_whole(pump):
    peer, device, shared, why = pump()
    for byte in frame(GOOD) + PING_FRAME + frame(GOOD):
        peer.sendall(bytes([byte]))

    assert device.recv(100) == GOOD
    assert device.recv(100) == GOOD
    peer.close()
    assert why() == "the peer closed"
    assert shared.read()["packets"] == 2


def test_a_batch_larger_than_the_buffer_arrives_in_order(pump):
    peer, device, _, why = pump()
    packets = [
        offload() + ipv4(payload=bytes([n % 256]) * (n * 37 % 1_400 + 8)) for n in range(2_000)
    ]

    def send():
        peer.sendall(b"".join(frame(each) for each in packets))
        peer.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    for each in packets:
        assert device.recv(70_000) == each
    assert why() == "the peer closed"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xff\xff\xff", "frame of kind 255"),
        ((MAX_PAYLOAD + 1).to_bytes(4, "little"), f"packet of {MAX_PAYLOAD + 1} bytes"),
        (b"\xff\xff\xff\x00", "packet of 16777215 bytes"),
        (b"\x00\x00\x00\x00", "packet of 0 bytes"),
        (b"\x0a\x00\x00\x00", "packet of 10 bytes"),
        (b"\x01\x00\x00\x01", "frame of kind 1 and 1 bytes"),
        (frame(offload() + ipv4(total=27)), "total length 27"),
        (frame(offload() + b"\x00" * 40), "IP version 0"),
        (b"GET / HTTP/1.1\r\n", "packet of"),
    ],
)
def test_a_malformed_frame_ends_the_pump_with_its_reason(pump, data, reason):
    peer, _, _, why = pump()
    peer.sendall(frame(GOOD) + data)

    assert why().startswith("malformed: ")
    assert reason in why() or "frame of kind" in why()


def test_half_a_frame_and_silence_end_the_pump(pump):
    peer, _, _, why = pump(silence_s=0.2)
    peer.sendall(frame(GOOD)[:20])

    assert why() == "the peer is silent"


def test_half_a_frame_and_the_end_deliver_nothing(pump):
    peer, _, shared, why = pump()
    peer.sendall(frame(GOOD)[:20])
    peer.close()

    assert why() == "the peer closed"
    assert shared.read()["packets"] == 0


def test_what_the_rules_forbid_is_counted_by_name_and_dropped(pump):
    peer, device, shared, why = pump()
    spoofed, metadata = ipv4(source="1.1.1.1"), ipv4(destination="169.254.169.254")
    peer.sendall(frame(offload() + spoofed) + frame(offload() + metadata) + frame(GOOD))

    assert device.recv(100) == GOOD
    peer.close()
    why()
    seen = shared.read()
    assert (seen["source"], seen["destination"], seen["packets"]) == (1, 1, 1)


def test_a_device_that_refuses_a_packet_does_not_end_the_pump(pump):
    peer, device, shared, why = pump()
    device.close()  # writing gives ECONNREFUSED, which no TUN device says
    peer.sendall(frame(GOOD))

    assert why().startswith("the TUN device is gone")
    assert shared.read()["packets"] == 0


@given(st.lists(st.binary(max_size=120), max_size=8))
def test_any_bytes_in_any_pieces_are_framed_the_same(pieces):
    """The decoder says the same of a stream however it is cut."""
    data = b"".join(pieces)

    def decode(step):
        found, at, have = [], 0, 0
        while True:
            try:
                while (one := next_frame(data, at, have)) is not None:
                    found.append(one)
                    at = one[2]
            except Malformed as error:
                return found, str(error)
            if have == len(data):
                return found, None
            have = min(len(data), have + step)

    assert decode(1) == decode(7) == decode(len(data) or 1)


@given(st.binary(max_size=40))
def test_any_hello_is_read_or_malformed(data):
    try:
        hello = decode_hello(data, queues=2)
    except Malformed:
        return
    assert hello.encode() == data


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: b"X" + d[1:], "begins with"),
        (lambda d: d[:4] + b"\x02" + d[5:], "version 2"),
        (lambda d: d[:5] + b"\x02" + d[6:], "queue 2 of 2"),
        (lambda d: d[:6] + b"\x00\x00" + d[8:], "MTU of 0"),
        (lambda d: d[:-1], f"{HELLO_SIZE - 1} bytes"),
    ],
)
def test_a_hello_that_is_none_of_ours(change, reason):
    with pytest.raises(Malformed, match=reason):
        decode_hello(change(Hello(1, 1_500, 7).encode()), queues=2)


def test_an_outbound_pump_frames_what_waits_pings_and_drains():
    peer, stream = socket.socketpair()
    device, tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    tun.setblocking(False)
    shared = counters.create("test")
    lifeline, end = os.pipe()
    job = Job("outbound", tun.fileno(), stream.fileno(), shared.fd, 0.2, Rules())
    child = subprocess.Popen(
        job.command(), stdin=lifeline, stdout=subprocess.PIPE, pass_fds=job.inherited
    )
    os.close(lifeline)
    with peer, device, tun, child:
        stream.close()
        peer.settimeout(10)
        device.send(GOOD)
        assert peer.recv(1 << 16) == frame(GOOD)
        assert peer.recv(1 << 16) == PING_FRAME
        device.send(GOOD)
        os.close(end)
        rest = b""
        while chunk := peer.recv(1 << 16):
            rest += chunk
        assert frame(GOOD) in rest
        assert set(rest.replace(frame(GOOD), b"")) <= set(PING_FRAME)
        assert child.stdout.read() == b"drained"
    assert shared.read()["packets"] == 2
    shared.words.release()
    os.close(shared.fd)
    assert next_frame(PING_FRAME, 0, 4) == (PING, 4, 4)
