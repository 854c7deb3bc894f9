"""The channel between an enclave and its parent, over a real stream: both ends honest, and each end a liar."""

import json
import socket
import time

import orjson
import pytest
import trio

from bot.checkpoint.blobs import BlobsFailed
from bot.checkpoint.folder import Folder
from bot.checkpoint.saver import Saver
from bot.checkpoint.seal import Sealer
from bot.parent import conversation
from bot.parent.client import ParentBlobs, ParentChannel, ParentSilent
from bot.parent.server import MOST_CONNECTIONS, ParentServer, read_meta
from bot.parent.store import BlobStore
from bot.parent.wire import BadMessage, decode_reply_untrusted, decode_request_untrusted
from keycrux_client.shares import DiskKey
from netstack import vsock
from tests.checkpoint.test_saver import content, file, read_back

KEY = DiskKey(b"k" * 32)


@pytest.fixture
async def parent(tmp_path, nursery):
    """A server on a Unix stream: (server, address, folder)."""
    address = vsock.parse_address(f"unix:{tmp_path}/parent.sock")
    folder = Folder(tmp_path / "blobs")
    server = ParentServer(BlobStore(folder), tmp_path / "instance", "192.0.2.7")
    nursery.start_soon(server.serve, await vsock.listen(address))
    return server, address, folder


async def test_claims_log_and_report(parent):
    server, address, folder = parent
    channel = ParentChannel(address)
    assert {"ip": "192.0.2.7"} == await channel.ask("get_ip")
    assert {"has_backup": False} == await channel.ask("has_backup")
    folder.put("backup", [b"1"])
    assert {"has_backup": True} == await channel.ask("has_backup")
    await channel.log("booted")
    await channel.ask("report", step="escrow")
    assert (["booted"], {"step": "escrow"}) == ([*server.told.lines], server.told.report)
    assert abs(server.told.reported_at - time.time()) < 60
    with pytest.raises(ParentSilent, match="no method fly"):
        await channel.ask("fly")


async def test_meta_is_what_the_operators_folder_says(parent, tmp_path):
    _, address, _ = parent
    assert {"prod": False, "releases": []} == json.loads(await ParentChannel(address).get_meta())
    (tmp_path / "instance/releases").mkdir(parents=True)
    (tmp_path / "instance/build.json").write_text('{"kind": 1}')
    (tmp_path / "instance/instance.json").write_text("no json")
    (tmp_path / "instance/releases/1.json").write_text('{"kind": 2}')
    (tmp_path / "instance/releases/2.json").write_text("[" * 100_000)
    told = {"prod": False, "build": {"kind": 1}, "releases": [{"kind": 2}]}
    assert told == json.loads(await ParentChannel(address).get_meta())
    assert json.loads(read_meta(tmp_path / "instance", True))["prod"] is True


async def test_a_checkpoint_by_way_of_the_parent(parent):
    _, address, folder = parent
    blobs = ParentBlobs(ParentChannel(address))
    files = [file("a", b"\1" * 65_536, b"\2" * 65_536, b"tail"), file("b", b"b" * 10)]
    saver = Saver(Sealer(KEY), blobs, 1, None)
    saved = await saver.save(files, [], b"", 0)
    assert {f.name: content(f) for f in files} == await read_back(blobs, saved.state.head, KEY)
    assert sorted(await blobs.names()) == folder.names()
    assert 2 == len(folder.names())
    await blobs.put("p-" + "0" * 32, [b"over"])
    again = Saver(Sealer(KEY), blobs, 2, saved.state, await blobs.names())
    assert 1 == await again.settle(saved.state.head)
    assert 2 == len(folder.names())
    assert await blobs.get("p-" + "0" * 32, 10) is None


async def test_shutdown_reaches_whoever_listens(parent, nursery):
    server, address, _ = parent
    assert 0 == server.tell("shutdown")
    told = []
    nursery.start_soon(ParentChannel(address).run_events, told.append)
    with trio.fail_after(5):
        while not server.listeners:
            await trio.sleep(0.01)
        assert 1 == server.tell("shutdown")
        while not told:
            await trio.sleep(0.01)
    assert ["shutdown"] == told


async def test_a_listener_that_went_away_is_forgotten(parent):
    server, address, _ = parent
    async with trio.open_nursery() as listening:
        listening.start_soon(ParentChannel(address).run_events, print)
        with trio.fail_after(5):
            while not server.listeners:
                await trio.sleep(0.01)
        listening.cancel_scope.cancel()
    with trio.fail_after(5):
        while server.listeners:
            await trio.sleep(0.01)


# -- an enclave that lies, to its parent -----------------------------------------------------------------


async def raw(address, *pieces, then_eof=True):
    """Send as it is; what came back until the end."""
    with await vsock.connect(address) as sock:
        try:
            for piece in pieces:
                await sock.send(piece)
            if then_eof:
                sock.shutdown(socket.SHUT_WR)
            answer = b""
            with trio.fail_after(10):
                while chunk := await sock.recv(65_536):
                    answer += chunk
        except ConnectionError:
            return b""
        return answer


@pytest.mark.parametrize(
    "line",
    [b"\n", b"no json\n", b"[]\n", b"{}\n", b'{"id": 1}\n', b'{"id": 1, "method": 7}\n', b"x" * 200_000,
     b'{"id":1,"method":"put","params":{"name":"a"}}\n', b'{"id":1,"method":"put","params":{"name":"a","size":-1}}\n',
     b'{"id":1,"method":"put","params":{"name":"a","size":true}}\n', b'{"id":1,"method":"put","params":{"name":"","size":1}}\n',
     b'{"id":1,"method":"put","params":{"name":"a","size":999999999999}}\n', b'{"id":1,"method":"delete","params":{"names":"a"}}\n',
     b'{"id":1,"method":"log","params":{"text":7}}\n', b'{"id":1,"method":"get_ip","params":[]}\n'],
)  # fmt: skip
async def test_who_breaks_the_rules_loses_his_connection_and_nobody_else(parent, line):
    _, address, folder = parent
    assert b"" == await raw(address, line)
    assert [] == folder.names()
    assert {"ip": "192.0.2.7"} == await ParentChannel(address).ask("get_ip")


@pytest.mark.parametrize("name", ["../x", "a/b", ".aside-1", "A", "..", "x" * 101])
async def test_a_name_that_is_a_path_writes_nothing(parent, tmp_path, name):
    _, address, _folder = parent
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BlobsFailed):
        await ParentBlobs(ParentChannel(address)).put(name, [b"evil"])
    with pytest.raises(BlobsFailed):
        await ParentBlobs(ParentChannel(address)).delete([name])
    assert before == sorted(tmp_path.rglob("*"))


async def test_a_put_that_ends_in_the_middle_leaves_what_was_there(parent):
    _, address, folder = parent
    folder.put("backup", [b"old"])
    head = b'{"id":1,"method":"put","params":{"name":"backup","size":100}}\n'
    assert b"" == await raw(address, head, b"half")
    with trio.fail_after(5):
        while list(folder.path.glob(".aside-*")):
            await trio.sleep(0.01)
    assert b"old" == folder.get("backup", 10)


async def test_a_put_that_drips_is_ended_and_others_go_on(parent, monkeypatch):
    monkeypatch.setattr(conversation, "SILENCE_S", 0.3)
    _, address, folder = parent
    head = b'{"id":1,"method":"put","params":{"name":"slow","size":100}}\n'
    began = trio.current_time()
    assert b"" == await raw(address, head, b"a", then_eof=False)
    assert 0.2 < trio.current_time() - began < 8
    assert [] == folder.names()


async def test_connections_are_bounded_and_each_keeps_its_place(parent):
    _, address, _ = parent
    held = [await vsock.connect(address) for _ in range(MOST_CONNECTIONS)]
    await trio.sleep(0.2)
    with pytest.raises(ParentSilent):
        await ParentChannel(address).ask("get_ip")
    line = b'{"id": 5, "method": "get_ip", "params": {}}\n'
    await held[0].send(line)
    assert {"id": 5, "result": {"ip": "192.0.2.7"}} == orjson.loads(await held[0].recv(1_000))
    for sock in held:
        sock.close()
    await trio.sleep(0.1)
    assert {"ip": "192.0.2.7"} == await ParentChannel(address).ask("get_ip")


async def test_a_full_disk_is_told_and_the_conversation_goes_on(parent, monkeypatch):
    _server, address, folder = parent

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("bot.checkpoint.folder.Incoming.write", full)
        with pytest.raises(BlobsFailed, match="No space left on device"):
            await ParentBlobs(ParentChannel(address)).put("a", [b"x" * 600_000])
    assert [] == [p.name for p in folder.path.iterdir()]
    await ParentBlobs(ParentChannel(address)).put("a", [b"x" * 600_000])
    assert 600_000 == folder.size("a")


# -- a parent that lies, to its enclave -------------------------------------------------------------------


async def lying(tmp_path, nursery, answer):
    """A channel to somebody who answers everything by that."""
    address = vsock.parse_address(f"unix:{tmp_path}/liar.sock")
    listener = await vsock.listen(address)

    async def serve():
        async for sock in vsock.accept_forever(listener, None):
            nursery.start_soon(converse, sock)

    async def converse(sock):
        with sock:
            await sock.recv(65_536)
            try:
                await answer(sock)
            except OSError:
                pass

    nursery.start_soon(serve)
    return ParentChannel(address)


@pytest.mark.parametrize(
    "said",
    [b"", b"\n", b"no json\n", b"[]\n", b'{"id":2,"result":1}\n', b'{"id":1,"error":"no"}\n', b'{"id":true,"result":1}\n'[:0],
     b"x" * 300_000, b'{"id":1}\n', b'{"id":1,"error":{"a":1}}\n'],
)  # fmt: skip
async def test_nonsense_is_silence(tmp_path, nursery, said):
    channel = await lying(tmp_path, nursery, lambda sock: sock.send(said))
    blobs = ParentBlobs(channel)
    with pytest.raises(ParentSilent):
        await channel.ask("has_backup")
    with pytest.raises(BlobsFailed):
        await blobs.put("a", [b"x"])
    with pytest.raises(BlobsFailed):
        await blobs.get("a", 10)
    with pytest.raises(BlobsFailed):
        await blobs.names()
    await channel.log("nobody has to listen")


@pytest.mark.parametrize(
    "said", [b'{"id":1,"result":{"size":11}}\nxxxxxxxxxxx', b'{"id":1,"result":{"size":5}}\nxx', b'{"id":1,"result":[]}\n',
             b'{"id":1,"result":{"size":-1}}\n', b'{"id":1,"result":{"size":"5"}}\nxxxxx', b'{"id":1,"result":{}}\n'],
)  # fmt: skip
async def test_a_blob_of_another_size_is_none(tmp_path, nursery, said):
    channel = await lying(tmp_path, nursery, lambda sock: sock.send(said))
    with pytest.raises(BlobsFailed):
        await ParentBlobs(channel).get("a", 10)


async def test_a_parent_that_never_answers_or_drips_is_given_up(tmp_path, nursery, monkeypatch):
    monkeypatch.setattr(conversation, "SILENCE_S", 0.3)
    monkeypatch.setattr(conversation.Conversation.line, "__defaults__", (0.3,))

    async def drips(sock):
        await sock.send(b'{"id":1,"result":{"size":100}}\n')
        for _ in range(100):
            await sock.send(b"x")
            await trio.sleep(0.1)

    for answer in (lambda _: trio.sleep(100), drips):
        channel = await lying(tmp_path, nursery, answer)
        began = trio.current_time()
        with pytest.raises(BlobsFailed):
            await ParentBlobs(channel).get("a", 200)
        assert trio.current_time() - began < 8


async def test_a_parent_that_says_ok_without_keeping_it_is_found_out_at_the_restore(parent):
    _, address, folder = parent
    blobs = ParentBlobs(ParentChannel(address))
    saved = await Saver(Sealer(KEY), blobs, 1, None).save([file("a", b"\1" * 65_536)], [], b"", 0)
    folder.delete([name for name in folder.names() if name.startswith("p-")])
    with pytest.raises(BadMessage.__mro__[1], match="has no pack"):
        await read_back(blobs, saved.state.head, KEY)


@pytest.mark.parametrize(
    "line",
    [b"", b"null", b"7", b'{"id":1.5,"method":"x"}', b'{"id":1,"method":"' + b"x" * 41 + b'"}'],
)
def test_requests_that_are_none(line):
    with pytest.raises(BadMessage):
        decode_request_untrusted(line)
    with pytest.raises(BadMessage):
        decode_reply_untrusted(line, 1)
