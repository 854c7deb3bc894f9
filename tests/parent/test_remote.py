"""Copies of the blobs on another remote, by real rclone; and the parent as a process, as its operator sees it."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import trio

from bot.checkpoint.folder import Folder
from bot.parent.client import ParentBlobs, ParentChannel
from bot.parent.run import BadParentConfig, load_parent
from bot.parent.store import BlobStore, Remote, RemoteFailed
from netstack import vsock


async def pieces(*parts):
    for part in parts:
        yield part


async def until(condition, seconds=20):
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.02)


def there(path):
    return {p.name: p.read_bytes() for p in path.iterdir()} if path.is_dir() else {}


async def test_what_is_put_and_deleted_is_so_at_the_remote_too(tmp_path, nursery):
    folder, away = Folder(tmp_path / "blobs"), tmp_path / "away"
    folder.put("p-0", [b"from before"])
    remote = Remote(folder.path, str(away))
    store = BlobStore(folder, remote)
    nursery.start_soon(remote.run)
    await until(lambda: there(away) == {"p-0": b"from before"})
    await store.put("p-1", pieces(b"one", b"two"))
    assert remote.lag_s > 0, "acknowledged before it is copied"
    await store.put("backup", pieces(b"1"))
    await until(lambda: there(away) == {"p-0": b"from before", "p-1": b"onetwo", "backup": b"1"})
    await store.delete(["p-0"])
    await until(lambda: there(away) == {"p-1": b"onetwo", "backup": b"1"})
    await until(lambda: remote.lag_s == 0)


async def test_a_disk_that_was_lost_comes_back_and_one_that_was_not_is_left_alone(tmp_path):
    away = tmp_path / "away"
    away.mkdir()
    (away / "p-1").write_bytes(b"kept")
    folder = Folder(tmp_path / "blobs")
    await Remote(folder.path, str(away)).bring_back()
    assert b"kept" == folder.get("p-1", 10)
    folder.put("p-1", [b"newer"])
    await Remote(folder.path, str(away)).bring_back()
    assert b"newer" == folder.get("p-1", 10)
    assert {"p-1": b"kept"} == there(away), (
        "and nothing is ever deleted there because it is not here"
    )


async def test_a_remote_that_fails_lags_and_is_tried_again(tmp_path, nursery, monkeypatch):
    monkeypatch.setattr("bot.parent.store.RETRY_FIRST_S", 0.1)
    folder, away = Folder(tmp_path / "blobs"), tmp_path / "away"
    away.write_text("a file where a folder should be")
    remote = Remote(folder.path, str(away / "in"))
    nursery.start_soon(remote.run)
    await BlobStore(folder, remote).put("p-1", pieces(b"x"))
    await trio.sleep(0.5)
    assert remote.lag_s > 0.4
    away.unlink()
    await until(lambda: there(away / "in") == {"p-1": b"x"})
    with pytest.raises(RemoteFailed):
        await Remote(Folder(tmp_path / "empty").path, "nowhere:x").bring_back()


@pytest.mark.parametrize("how", ["replaced", "deleted"])
async def test_what_changes_while_it_is_copied_is_copied_again(tmp_path, nursery, how):
    folder, away = Folder(tmp_path / "blobs"), tmp_path / "away"
    remote = Remote(folder.path, str(away))
    store, real = BlobStore(folder, remote), remote._rclone
    has_read, goes_on = trio.Event(), trio.Event()

    async def held(*arguments, **options):
        await real(*arguments, **options)
        if "--files-from" in arguments and not has_read.is_set():
            has_read.set()
            await goes_on.wait()

    remote._rclone = held
    nursery.start_soon(remote.run)
    await store.put("backup", pieces(b"old"))
    await has_read.wait()
    if how == "replaced":
        await store.put("backup", pieces(b"newer"))
    else:
        await store.delete(["backup"])
    goes_on.set()
    await until(lambda: remote.lag_s == 0)
    assert ({"backup": b"newer"} if how == "replaced" else {}) == there(away)


async def test_a_disk_that_was_half_brought_back_is_not_taken_for_ours(tmp_path, nursery):
    """A power cut in the middle: what is cut here must never be copied over what is whole there."""
    away, whole = tmp_path / "away", os.urandom(4 << 20)
    away.mkdir()
    for name in ("p-1", "p-2"):
        (away / name).write_bytes(whole)
    folder = Folder(tmp_path / "blobs")
    remote = Remote(folder.path, str(away))
    remote._options += ["--bwlimit", "2M"]
    with trio.move_on_after(1.5):
        await remote.bring_back()
    assert {} == there(folder.path)
    folder = Folder(tmp_path / "blobs")
    remote = Remote(folder.path, str(away))
    await remote.bring_back()
    assert {"p-1": whole, "p-2": whole} == there(folder.path) == there(away)
    nursery.start_soon(remote.run)
    await BlobStore(folder, remote).put("p-3", pieces(b"x"))
    await until(lambda: there(away) == {"p-1": whole, "p-2": whole, "p-3": b"x"})


async def test_what_was_never_copied_lags_and_says_why(tmp_path, nursery):
    folder, away = Folder(tmp_path / "blobs"), tmp_path / "away"
    folder.put("p-0", [b"x"])
    away.write_text("a file where a folder should be")
    remote = Remote(folder.path, str(away / "in"))
    nursery.start_soon(remote.run)
    await until(lambda: remote.problem is not None)
    assert "not a directory" in remote.problem
    assert 0 < remote.lag_s < 60
    away.unlink()
    await until(lambda: remote.lag_s == 0 and remote.problem is None)
    assert {"p-0": b"x"} == there(away / "in")


async def test_what_was_put_and_deleted_before_the_first_copy_is_no_problem(tmp_path, nursery):
    folder, away = Folder(tmp_path / "blobs"), tmp_path / "away"
    remote = Remote(folder.path, str(away))
    store = BlobStore(folder, remote)
    await store.put("p-1", pieces(b"x"))
    await store.delete(["p-1"])
    nursery.start_soon(remote.run)
    await until(lambda: remote.lag_s == 0)
    assert None is remote.problem


# -- the process ------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "parent.toml"
    path.write_text(
        f'state = "{tmp_path}/state"\ninstance = "{tmp_path}/instance"\nip = "192.0.2.7"\n'
        f'listen = "unix:{tmp_path}/vsock"\noperator = "unix:{tmp_path}/operator"\nremote = "{tmp_path}/away"\n'
    )
    return path


def asked(config, *words, code=0):
    command = [sys.executable, "-m", "bot", "parent", *words, "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert code == done.returncode, done.stderr
    return done.stdout + done.stderr


async def test_the_parent_as_its_operator_sees_it(config, tmp_path):
    assert "no parent runs" in asked(config, "status", code=1)
    command = [sys.executable, "-m", "bot", "parent", "run", "--config", str(config)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await until((tmp_path / "operator").exists)
        channel = ParentChannel(vsock.parse_address(f"unix:{tmp_path}/vsock"))
        await ParentBlobs(channel).put("m-" + "0" * 64, [b"x" * 3_000_000])
        await channel.log("step: escrow")
        await channel.ask(
            "report", step="restore", restore={"done_bytes": 1 << 20, "all_bytes": 4 << 20}
        )
        await until(lambda: (tmp_path / "away").is_dir())
        status = await trio.to_thread.run_sync(asked, config, "status")
        for word in (
            "restore      1.0 of 4.0 MiB, 25 %",
            "step: escrow",
            "1, 2.9 MiB",
            "not connected",
        ):
            assert word in status
        told = json.loads(await trio.to_thread.run_sync(asked, config, "status", "--json"))
        assert 0 <= told["backups"]["newest_s_ago"] < 60
        assert "step: escrow\n" == await trio.to_thread.run_sync(asked, config, "logs")
        assert "nobody to tell" in asked(config, "shutdown", code=1)
        running.kill()
        running.wait()
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        async def again():
            return await ParentBlobs(channel).get("m-" + "0" * 64, 3_000_000)

        with trio.fail_after(20):
            while (found := await _or_none(again)) is None:
                await trio.sleep(0.05)
        assert 3_000_000 == len(found), "kill -9 of the parent cost nothing"
    finally:
        running.send_signal(signal.SIGTERM)
        assert 0 == running.wait(20)


async def _or_none(ask):
    try:
        return await ask()
    except Exception:
        return None


@pytest.mark.parametrize(
    ("text", "says"),
    [("nonsense", "not TOML"), ('listen = "here"', "listen: 'here' is no address"), ("listen = 7", "listen must be a str"),
     ("prod = 1", "prod must be a bool"), ('peer = 3', "unknown name 'peer'"), ('peer_cid = "3"', "peer_cid must be a int")],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, text, says):
    path = tmp_path / "parent.toml"
    path.write_text(text)
    with pytest.raises(BadParentConfig, match=says):
        load_parent(path)
    with pytest.raises(BadParentConfig, match="cannot read"):
        load_parent(tmp_path / "nowhere")


def test_rclone_is_really_there():
    assert shutil.which("rclone"), "build/setup.sh brings it"
