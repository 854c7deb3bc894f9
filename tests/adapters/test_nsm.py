"""The security module: who may open it, what goes over the wire, and the development one behind a real socket."""

import fcntl
import hashlib
import os
import struct

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bot.adapters.nsm import NsmAttester, NsmDevice, NsmSocket, NsmUnusable, open_transport
from bot.devstack.nsm import DevNsm, measure, serve
from netstack.vsock import parse_address
from nips.errors import BadInput
from nips.tee import cbor
from nips.tee.anchor import Anchor
from nips.tee.attestation import Verifier
from nips.tee.nec03 import pcr8_of
from nips.tee.nec04 import pcr4_of
from nips.tee.nsm import (
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    BadNsmMessage,
    NsmCode,
    NsmRefused,
    NsmRequest,
    attestation_request,
    decode_request_untrusted,
    encode_request,
    open_description_untrusted,
    open_response_untrusted,
)
from tests.evidence import HARDWARE, NOW, measured

PCRS = {0: measured("0"), 1: measured("1"), 2: measured("2")}
VERIFIER = Verifier(Anchor(HARDWARE.authority.root.der, is_development=True))


@pytest.fixture
def module():
    return DevNsm(HARDWARE.authority, PCRS, lambda: NOW)


@pytest.fixture
async def socket(module, tmp_path, nursery):
    path = tmp_path / "nsm.sock"
    nursery.start_soon(serve, module, path)
    with trio.fail_after(5):
        while not path.exists():
            await trio.sleep(0.01)
    return path


async def test_a_document_over_the_socket_verifies_and_carries_what_was_asked(socket):
    attester = NsmAttester(open_transport(socket))
    raw = await attester.document(public_key=b"k" * 32, nonce=b"n" * 32, user_data=b"u")
    document = VERIFIER.verify(raw, NOW, nonce=b"n" * 32).document
    assert (b"k" * 32, b"u", measured("0")) == (
        document.public_key,
        document.user_data,
        document.pcrs.values[0],
    )


async def test_registers_extend_lock_and_show_in_documents_only_when_locked(socket):
    attester = NsmAttester(open_transport(socket))
    described = await attester.describe()
    assert (tuple(range(16)), 32) == (described.locked_pcrs, described.max_pcrs)
    value = await attester.extend_pcr(16, b"policy")
    assert hashlib.sha384(bytes(48) + b"policy").digest() == value
    assert (value, False) == await attester.pcr(16)
    before = VERIFIER.verify(await attester.document(public_key=b"k"), NOW)
    assert before.pcrs.hex(16) is None
    await attester.lock_pcr(16)
    after = VERIFIER.verify(await attester.document(public_key=b"k"), NOW)
    assert value.hex() == after.pcrs.hex(16)
    assert 256 == len(await attester.random())


async def test_refusals_are_typed(socket):
    attester = NsmAttester(open_transport(socket))
    cases = [
        (lambda: attester.extend_pcr(0, b"x"), NsmCode.READ_ONLY_INDEX),
        (lambda: attester.lock_pcr(0), NsmCode.READ_ONLY_INDEX),
        (lambda: attester.pcr(32), NsmCode.INVALID_INDEX),
        (lambda: attester.document(public_key=b"x" * 1_025), NsmCode.INPUT_TOO_LARGE),
        (lambda: attester.document(public_key=b"x", nonce=b"x" * 513), NsmCode.INPUT_TOO_LARGE),
        (lambda: attester.extend_pcr(20, b"x" * 5_000), NsmCode.INPUT_TOO_LARGE),
    ]
    for call, code in cases:
        with pytest.raises(NsmRefused) as caught:
            await call()
        assert code is caught.value.code


async def test_a_module_that_any_other_user_could_open_is_refused(socket):
    assert 0o600 == socket.stat().st_mode & 0o777
    for mode in (0o666, 0o660, 0o606, 0o604, 0o640):
        socket.chmod(mode)
        with pytest.raises(NsmUnusable, match="could be opened by other users"):
            open_transport(socket)
    socket.chmod(0o600)
    open_transport(socket)


def test_what_is_no_module(tmp_path):
    with pytest.raises(NsmUnusable, match="No such file"):
        open_transport(tmp_path / "none")
    file = tmp_path / "file"
    file.touch(mode=0o600)
    with pytest.raises(NsmUnusable, match="neither a device nor a socket"):
        open_transport(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file to another user")
def test_a_module_of_another_user_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch(mode=0o600)
    os.chown(file, 65_534, 65_534)
    with pytest.raises(NsmUnusable, match="other users"):
        open_transport(file)


@pytest.mark.parametrize("answer", [b"", b"\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x05abc"])
async def test_a_module_that_says_nothing_or_nonsense(tmp_path, nursery, answer):
    path = str(tmp_path / "odd.sock")
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(path)
    listener.listen()

    async def say(stream):
        async with stream:
            await stream.receive_some(10_000)
            await stream.send_all(answer)

    nursery.start_soon(trio.serve_listeners, say, [trio.SocketListener(listener)])
    with pytest.raises(NsmUnusable, match="Attestation by the security module"):
        await NsmAttester(NsmSocket(parse_address(f"unix:{tmp_path}/odd.sock"))).document(
            public_key=b"k"
        )


async def test_the_device_gets_the_kernels_structure_and_a_whole_buffer(
    module, tmp_path, monkeypatch
):
    """The ioctl of linux/nsm.h, with a driver in Python that reads and writes through the addresses."""
    import ctypes

    calls = []

    def driver(fd, number, raw, mutate):
        request, request_length, response, room = struct.unpack("=QQQQ", raw)
        calls.append((number, room))
        answer = module.call(ctypes.string_at(request, request_length))
        ctypes.memmove(response, answer, len(answer))
        struct.pack_into("=Q", raw, 24, len(answer))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", driver)
    file = tmp_path / "device"
    file.touch()
    attester = NsmAttester(NsmDevice(file))
    assert VERIFIER.verify(await attester.document(public_key=b"k" * 32), NOW)
    assert [(0xC0200A00, MAX_RESPONSE_BYTES)] == calls

    def broken(*_):
        raise TimeoutError(110, "timed out")

    monkeypatch.setattr(fcntl, "ioctl", broken)
    with pytest.raises(NsmUnusable, match="timed out"):
        await attester.describe()


# -- the codec ------------------------------------------------------------------------------------------


def test_requests_are_written_as_the_driver_wants_them():
    assert b"\x6bDescribeNSM" == encode_request(NsmRequest("DescribeNSM", {}))
    raw = encode_request(attestation_request(b"k", None, None))
    assert {
        "Attestation": {"user_data": None, "nonce": None, "public_key": b"k"}
    } == cbor.decode_untrusted(raw)
    with pytest.raises(NsmRefused):
        encode_request(NsmRequest("ExtendPCR", {"data": bytes(MAX_REQUEST_BYTES)}))


@pytest.mark.parametrize(
    "raw",
    [b"", bytes(MAX_RESPONSE_BYTES + 1), cbor.encode("Other"), cbor.encode({"Other": {}}), cbor.encode({"Error": "Odd"}),
     cbor.encode({"Error": 1}), cbor.encode({"Attestation": 1}), cbor.encode([]), cbor.encode({"Attestation": {}, "Error": "x"})],
)  # fmt: skip
def test_responses_that_are_none(raw):
    with pytest.raises(BadNsmMessage):
        open_response_untrusted("Attestation", raw)


@given(st.binary(max_size=100))
def test_any_bytes_to_and_from_the_module(raw):
    answer = DevNsm(HARDWARE.authority, PCRS, lambda: NOW).call(raw)
    assert cbor.decode_untrusted(answer) is not None
    for read in (
        decode_request_untrusted,
        lambda r: open_response_untrusted("GetRandom", r),
        open_description_untrusted,
    ):
        try:
            read(raw)
        except (BadInput, NsmRefused):
            pass


def test_measurements_follow_the_files_and_nothing_else(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.py").write_text("1")
    first = measure(tmp_path, "i-1")
    (tmp_path / "a/x.pyc").write_text("compiled")
    assert first == measure(tmp_path, "i-1")
    (tmp_path / "a/x.py").write_text("2")
    second = measure(tmp_path, "i-1")
    assert (first[0], first[2]) != (second[0], second[2])
    assert first[1] == second[1]
    (tmp_path / "a/x.py").rename(tmp_path / "a/y.py")
    assert second[0] != measure(tmp_path, "i-1")[0]
    assert pcr4_of("i-1") == first[4]
    assert pcr8_of(b"der") == measure(tmp_path, "i-1", b"der")[8]
