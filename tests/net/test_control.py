"""The control channel, streams and configuration: liars, halves and floods at the other end."""

import json
import socket
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from netstack import control, streams, vsock
from netstack.config import ConfigError, load_enclave, load_parent
from netstack.control import Ports, Refused, read_containers, read_ports, read_uplink
from netstack.machine.egress import Allow, Egress
from netstack.machine.layout import Uplink
from netstack.vsock import BadAddress, parse_address


async def _echo(params):
    return dict(params)


async def _refuse(params):
    raise Refused("not today")


async def _break(params):
    raise RuntimeError("a surprise")


HANDLERS = {"echo": _echo, "refuse": _refuse, "break": _break}


@pytest.fixture
async def server(tmp_path, nursery):
    address = parse_address(f"unix:{tmp_path}/control.sock")
    nursery.start_soon(control.serve, await vsock.listen(address), HANDLERS)
    return address


async def test_a_question_and_its_answer(server):
    assert await control.call(server, "echo", ports=[1, 2]) == {"ports": [1, 2]}


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("refuse", "not today"),
        ("nothing", "no method 'nothing'"),
        ("break", "internal: RuntimeError"),
    ],
)
async def test_a_refusal_is_told_and_the_server_goes_on(server, method, said, capsys):
    with pytest.raises(Refused, match=said):
        await control.call(server, method)
    assert await control.call(server, "echo") == {}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"hello", "not JSON"),
        (b"[]", "an object is wanted"),
        (b"null", "an object is wanted"),
        (b"[" * 100_000, "not JSON"),
        (b'{"id":1,"method":"echo","params":[]}', "an object is wanted"),
        (b"\xff\xfe", "not JSON"),
    ],
)
async def test_nonsense_is_answered_in_words(server, line, said):
    with await vsock.connect(server) as sock:
        await sock.send(line + b"\n")
        reply = json.loads(await control.Lines(sock).next(5))
    assert said in reply["error"]


async def test_an_endless_line_loses_its_connection_only(server):
    with await vsock.connect(server) as sock, pytest.raises(OSError):
        while True:
            await sock.send(b"x" * 65_536)
    assert await control.call(server, "echo", a=1) == {"a": 1}


async def test_a_crowd_that_says_nothing_is_bounded(server):
    silent = [await vsock.connect(server) for _ in range(control.MOST_CONNECTIONS)]
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises((Refused, OSError)):
        await control.call(server, "echo")
    for sock in silent:
        sock.close()
    await trio.testing.wait_all_tasks_blocked()
    assert await control.call(server, "echo") == {}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\n",
        b"[]\n",
        b"nonsense\n",
        b'{"error":"no"}\n',
        b"x" * 300_000,
        b"[" * 5_000 + b"\n",
    ],
)
async def test_a_parent_that_answers_nonsense_is_refused(tmp_path, nursery, answer):
    address = parse_address(f"unix:{tmp_path}/parent.sock")
    listener = await vsock.listen(address)

    async def parent():
        sock, _ = await listener.accept()
        with sock:
            try:
                while answer:
                    await sock.send(answer)
                    if answer.endswith(b"\n"):
                        break
            except OSError:
                pass

    nursery.start_soon(parent)
    with pytest.raises((Refused, OSError)):
        await control.call(address, "get_uplink")


@pytest.mark.parametrize(
    "result",
    [None, {}, [], {"address": "x", "mtu": 1, "ipv6": False}, {"address": "1.2.3.4", "mtu": "1500", "ipv6": True},
     {"address": "127.0.0.1", "mtu": 1500, "ipv6": False}, {"address": "224.0.0.1", "mtu": 1500, "ipv6": False},
     {"address": "169.254.169.254", "mtu": 1500, "ipv6": False}, {"address": "1.2.3.4", "mtu": True, "ipv6": False},
     {"address": "1.2.3.4", "mtu": 1500, "ipv6": 1}],
)  # fmt: skip
def test_an_uplink_that_cannot_be(result):
    with pytest.raises(Refused):
        read_uplink(result)


def test_an_uplink_never_names_an_interface_of_ours():
    told = {"interface": "lo", "address": "1.2.3.4", "mtu": 9_001, "ipv6": True}
    assert read_uplink(told) == Uplink("", "1.2.3.4", 9_001, ipv6=True)


@pytest.mark.parametrize(
    "port", [0, -1, 22, 81, 1_023, 61_440, 65_535, 65_536, "80", True, 80.0, None]
)
def test_ports_that_are_not_the_enclaves(port):
    with pytest.raises(Refused, match="no port of the enclave"):
        read_ports({"tcp": [port]})


def test_ports_that_are():
    assert read_ports({"tcp": [80, 443, 1_024, 61_439], "udp": []}) == Ports(frozenset((80, 443, 1_024, 61_439)))  # fmt: skip
    with pytest.raises(Refused, match="at most"):
        read_ports({"udp": [2_000] * 5_000})


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=12))  # fmt: skip
def test_any_json_is_read_or_refused(value):
    for reader in (read_ports, read_containers):
        for params in (
            {"tcp": value},
            {"containers": value},
            {"containers": {"10.200.0.2": value}},
        ):
            try:
                reader(params)
            except Refused:
                pass
    try:
        read_uplink(value)
    except Refused:
        pass


def test_rules_of_containers_are_typed():
    rule = {"network": "1.1.1.1/32", "protocol": "tcp", "first_port": 443, "last_port": 443}
    found = read_containers({"containers": {"10.200.0.2": None, "10.200.0.18": [rule]}})
    assert found == {
        "10.200.0.2": Egress(),
        "10.200.0.18": Egress((Allow("1.1.1.1/32", "tcp", 443, 443),)),
    }
    for bad in ({"network": 5}, {"network": "1.1.1.1", "first_port": "1"}, {"port": 1}, {}, "x"):
        with pytest.raises(Refused):
            read_containers({"containers": {"10.200.0.2": [bad]}})


# --- streams


@pytest.fixture
async def joined(tmp_path, nursery):
    """A stream from one Unix address to another, and the listener behind it."""
    source, target = (parse_address(f"unix:{tmp_path}/{n}.sock") for n in ("source", "target"))
    behind = await vsock.listen(target)
    listener = await vsock.listen(source)
    nursery.start_soon(streams.serve, streams.Stream(source, target), listener)
    return source, behind


async def _all(sock):
    data = b""
    while chunk := await sock.recv(1 << 16):
        data += chunk
    return data


async def test_a_stream_is_closed_half_by_half(joined):
    source, behind = joined
    with await vsock.connect(source) as one:
        other, _ = await behind.accept()
        with other:
            await one.send(b"question")
            one.shutdown(socket.SHUT_WR)
            assert await _all(other) == b"question"
            await other.send(b"a late answer")
            other.shutdown(socket.SHUT_WR)
            assert await _all(one) == b"a late answer"


async def test_a_hundred_megabytes_arrive_whole_both_ways(joined, nursery):
    import hashlib

    source, behind = joined
    block, blocks = bytes(range(256)) * 4_096, 50
    sums = {}

    async def send(sock):
        for _ in range(blocks):
            view = memoryview(block)
            while view:
                view = view[await sock.send(view) :]
        sock.shutdown(socket.SHUT_WR)

    async def receive(name, sock):
        digest = hashlib.sha256()
        while chunk := await sock.recv(1 << 18):
            digest.update(chunk)
        sums[name] = digest.hexdigest()

    with await vsock.connect(source) as one:
        other, _ = await behind.accept()
        with other:
            async with trio.open_nursery() as both:
                for name, sock in (("one", one), ("other", other)):
                    both.start_soon(send, sock)
                    both.start_soon(receive, name, sock)
    wanted = hashlib.sha256(block * blocks).hexdigest()
    assert sums == {"one": wanted, "other": wanted}


async def test_a_reader_that_does_not_read_stops_the_writer(joined):
    source, behind = joined
    with await vsock.connect(source) as one:
        other, _ = await behind.accept()
        with other:
            sent = 0
            with trio.move_on_after(0.5):
                while True:
                    sent += await one.send(b"x" * 65_536)
            assert sent < 4 << 20
            with trio.fail_after(10):
                got = 0
                while got < sent:
                    got += len(await other.recv(1 << 16))


async def test_a_target_that_is_not_there_closes_the_stream_and_no_other(
    tmp_path, nursery, joined
):
    source, behind = joined
    lost = parse_address(f"unix:{tmp_path}/lost.sock")
    nowhere = parse_address(f"unix:{tmp_path}/nowhere.sock")
    nursery.start_soon(streams.serve, streams.Stream(lost, nowhere), await vsock.listen(lost))
    with await vsock.connect(lost) as sock:
        assert await sock.recv(1) == b""
    with await vsock.connect(source) as one:
        other, _ = await behind.accept()
        other.close()
        assert await one.recv(1) == b""


async def test_a_break_on_one_side_breaks_the_other(joined):
    source, behind = joined
    with await vsock.connect(source) as one:
        other, _ = await behind.accept()
        await one.send(b"x")
        other.close()  # with unread data: a reset
        with trio.fail_after(5):
            try:
                assert await one.recv(10) == b""
            except ConnectionError:
                pass


# --- addresses and configuration


@pytest.mark.parametrize(
    ("text", "family", "where"),
    [
        ("vsock:3:1081", socket.AF_VSOCK, (3, 1_081)),
        ("vsock:any:1081", socket.AF_VSOCK, (socket.VMADDR_CID_ANY, 1_081)),
        ("unix:/run/x.sock", socket.AF_UNIX, "/run/x.sock"),
        ("tcp:127.0.0.1:80", socket.AF_INET, ("127.0.0.1", 80)),
    ],
)
def test_addresses(text, family, where):
    found = parse_address(text)
    assert (found.family, found.where, str(found)) == (family, where, text)


@pytest.mark.parametrize(
    "text", ["", "vsock", "vsock:3", "vsock:x:1", "vsock:3:0", "unix:relative", "tcp:1.1.1.1:65536", "tcp:80", "udp:a:1"]
)  # fmt: skip
def test_what_is_no_address_is_told_what_one_looks_like(text):
    with pytest.raises(BadAddress, match=r"write vsock:CID:PORT|not in 1"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plane = 5", "plane: a section is wanted"),
        ('[plane]\nkind = "tap"', "kind is tun or nfqueue"),
        ("[plane]\nqueues = 99", "queues is 1 to 8"),
        ('packet = "unix:/x"', "unknown: packet; known: control"),
        ('packets = "nowhere"', "packets: 'nowhere' is no address"),
        ("[[streams]]\nsource = 'unix:/x'", "a source and a target"),
        ("[inside]\ncontainers = ['8.8.8.0/24']", "private IPv4"),
        ("[inside]\nservices = ['x']", "not of type int"),
        ("[resolver]\nupstreams = ['1.1.1.1']", "address@port#name"),
        ("x = ", "is not TOML"),
        ("[uplink]\naddress = '127.0.0.1'", "no address of an uplink"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_name(tmp_path, text, said):
    file = tmp_path / "enclave.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_enclave(file)
    assert said in str(caught.value)


def test_the_files_as_documented(tmp_path):
    enclave, parent = tmp_path / "enclave.toml", tmp_path / "parent.toml"
    enclave.write_text(
        "resolver = false\n[inside]\nservices = [7070]\n[uplink]\naddress = '54.0.0.2'\n"
    )
    parent.write_text(
        "peer_cid = 16\n[[streams]]\nsource = 'vsock:any:3080'\ntarget = 'tcp:127.0.0.1:3080'\n"
    )
    assert load_enclave(enclave).resolver is None
    assert load_enclave(enclave).uplink == Uplink("", "54.0.0.2", 1_500, ipv6=False)
    assert load_parent(parent).streams[0].target == parse_address("tcp:127.0.0.1:3080")
    with pytest.raises(ConfigError, match="cannot read"):
        load_parent(tmp_path / "nothing.toml")


@pytest.mark.parametrize(("end", "load"), [("parent", load_parent), ("enclave", load_enclave)])
def test_the_readmes_configuration_is_read(tmp_path, end, load):
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    (tmp_path / "x.toml").write_text(readme.split(f"```toml\n# {end}.toml\n")[1].split("```")[0])
    config = load(tmp_path / "x.toml")

    if end == "parent":
        assert (config.uplink, config.peer_cid) == ("ens5", 16)
    else:
        assert config.plane.kind == "tun"
        assert config.inside.public == (8_081,)
        assert len(config.streams) == 1
        assert len(config.resolver.upstreams) == 2
