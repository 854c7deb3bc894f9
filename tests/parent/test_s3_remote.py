"""Copies of the blobs in a bucket, by real rclone: an S3 server that checks signatures runs beside the tests."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
import structlog
import trio

from bot.checkpoint.folder import Folder
from bot.devstack.engine import free_port
from bot.parent.client import ParentBlobs, ParentChannel
from bot.parent.store import BlobStore, Remote, RemoteFailed
from netstack import vsock
from tests.parent.test_remote import asked, pieces, until

WHERE = "s3:bucket/enclave"
ACCESS_KEY, SECRET = "the-enclave", "the-secret"
MANIFEST = "m-" + "0" * 64


class S3Server:
    """A process on loopback, and the file that rclone reads to find it. The bucket is not there yet."""

    def __init__(self, folder):
        self._folder, self._port, self._running = folder, free_port(), None
        self.rclone_config = folder / "rclone.conf"
        (folder / "options.toml").write_text(
            f'[[users]]\naccess_key = "{ACCESS_KEY}"\nsecret_key = "{SECRET}"\n'
        )
        self.sign_with(ACCESS_KEY, SECRET)

    def sign_with(self, access_key, secret):
        """What rclone calls itself from now on."""
        self.rclone_config.write_text(
            f"[s3]\ntype = s3\nprovider = Other\nendpoint = http://127.0.0.1:{self._port}\n"
            f"access_key_id = {access_key}\nsecret_access_key = {secret}\n"
        )

    async def start(self):
        options = f"--host 127.0.0.1 --port {self._port} --data-dir {self._folder}/data --options {self._folder}/options.toml"
        command = [sys.executable, "-m", "nanio", "serve", *options.split()]
        with (self._folder / "log").open("ab") as log:
            self._running = subprocess.Popen(command, stdout=log, stderr=log)
        with trio.fail_after(20):
            while not await self._answers():
                assert self._running.poll() is None, (self._folder / "log").read_text()
                await trio.sleep(0.02)

    async def _answers(self):
        try:
            await (await trio.open_tcp_stream("127.0.0.1", self._port)).aclose()
        except OSError:
            return False
        return True

    def stop(self):
        if self._running is not None:
            self._running.kill()
            self._running.wait()

    def kept(self):
        """The server keeps an object as a file; until all of it is there, the file hides."""
        whole = (self._folder / "data/bucket/enclave").glob("[!.]*")
        return {path.name: path.read_bytes() for path in whole}


@pytest.fixture
async def s3(tmp_path, monkeypatch):
    for name in os.environ:
        if name.startswith(("AWS_", "RCLONE_")):
            monkeypatch.delenv(name)
    # rclone alone would try for minutes before it says anything: here it is our own trying again that counts.
    monkeypatch.setenv("RCLONE_RETRIES", "1")
    monkeypatch.setenv("RCLONE_LOW_LEVEL_RETRIES", "1")
    monkeypatch.setattr("bot.parent.store.RETRY_FIRST_S", 0.1)
    (tmp_path / "s3").mkdir()
    server = S3Server(tmp_path / "s3")
    try:
        await server.start()
        yield server
    finally:
        server.stop()


async def test_what_is_put_replaced_and_deleted_is_so_in_the_bucket_too(s3, tmp_path, nursery):
    folder = Folder(tmp_path / "blobs")
    folder.put("p-0", [b"from before"])
    remote = Remote(folder.path, WHERE, s3.rclone_config)
    store = BlobStore(folder, remote)
    nursery.start_soon(remote.run)
    await until(lambda: s3.kept() == {"p-0": b"from before"})
    await store.put("backup", pieces(b"1"))
    assert remote.lag_s > 0, "acknowledged before it is copied"
    await until(lambda: remote.lag_s == 0)
    assert {"p-0": b"from before", "backup": b"1"} == s3.kept()
    await store.put("backup", pieces(b"2"))
    await until(lambda: remote.lag_s == 0)
    assert b"2" == s3.kept()["backup"], "of the same size, and yet another one"
    await store.delete(["p-0", "p-never-there"])
    await until(lambda: remote.lag_s == 0)
    assert {"backup": b"2"} == s3.kept()


async def test_a_disk_that_was_lost_comes_back_from_the_bucket(s3, tmp_path):
    lost, new = Folder(tmp_path / "lost"), Folder(tmp_path / "new")
    await Remote(new.path, WHERE, s3.rclone_config).bring_back()
    assert [] == new.names(), "a first launch: there is no bucket yet"
    lost.put("p-1", [b"kept"])
    async with trio.open_nursery() as running:
        running.start_soon(Remote(lost.path, WHERE, s3.rclone_config).run)
        await until(lambda: s3.kept() == {"p-1": b"kept"})
        running.cancel_scope.cancel()
    await Remote(new.path, WHERE, s3.rclone_config).bring_back()
    assert b"kept" == new.get("p-1", 10)
    new.put("p-1", [b"newer"])
    await Remote(new.path, WHERE, s3.rclone_config).bring_back()
    assert b"newer" == new.get("p-1", 10)
    assert {"p-1": b"kept"} == s3.kept()


async def test_a_server_that_is_down_costs_a_lag_and_no_blob(s3, tmp_path, nursery):
    folder = Folder(tmp_path / "blobs")
    remote = Remote(folder.path, WHERE, s3.rclone_config)
    store = BlobStore(folder, remote)
    nursery.start_soon(remote.run)
    await store.put("p-1", pieces(b"before"))
    await until(lambda: remote.lag_s == 0)
    s3.stop()
    await store.delete(["p-1"])
    await store.put("p-2", pieces(b"meanwhile"))
    await trio.sleep(0.5)
    assert remote.lag_s > 0.4
    assert {"p-1": b"before"} == s3.kept()
    await s3.start()
    await until(lambda: remote.lag_s == 0)
    assert {"p-2": b"meanwhile"} == s3.kept()


@pytest.mark.parametrize(
    ("access_key", "secret", "says"),
    [(ACCESS_KEY, "another", "SignatureDoesNotMatch"), ("nobody", SECRET, "InvalidAccessKeyId")],
)
async def test_wrong_credentials_are_named_until_they_are_mended(
    s3, tmp_path, nursery, access_key, secret, says
):
    s3.sign_with(access_key, secret)
    folder = Folder(tmp_path / "blobs")
    remote = Remote(folder.path, WHERE, s3.rclone_config)
    with pytest.raises(RemoteFailed, match=says):
        await remote.bring_back()
    with structlog.testing.capture_logs() as lines:
        nursery.start_soon(remote.run)
        await BlobStore(folder, remote).put("p-1", pieces(b"x"))
        await until(lambda: lines)
    assert ("remote.failed", "warning") == (lines[0]["event"], lines[0]["log_level"])
    assert says in lines[0]["reason"]
    assert secret not in lines[0]["reason"]
    assert remote.lag_s > 0
    assert {} == s3.kept()
    s3.sign_with(ACCESS_KEY, SECRET)
    await until(lambda: remote.lag_s == 0)
    assert {"p-1": b"x"} == s3.kept(), "nobody had to start the parent again"


@asynccontextmanager
async def running_parent(config, folder):
    """The process, until the end of the block."""
    (folder / "operator").unlink(missing_ok=True)
    command = [sys.executable, "-m", "bot", "parent", "run", "--config", str(config)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await until((folder / "operator").exists)
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        assert 0 == running.wait(20)


async def test_a_parent_on_a_new_disk_has_what_the_bucket_has(s3, tmp_path):
    config = tmp_path / "parent.toml"
    config.write_text(
        f'state = "{tmp_path}/state"\ninstance = "{tmp_path}/instance"\n'
        f'listen = "unix:{tmp_path}/vsock"\noperator = "unix:{tmp_path}/operator"\n'
        f'remote = "{WHERE}"\nrclone_config = "{s3.rclone_config}"\n'
    )
    blobs = ParentBlobs(ParentChannel(vsock.parse_address(f"unix:{tmp_path}/vsock")))
    async with running_parent(config, tmp_path):
        await blobs.put(MANIFEST, [b"x" * 3_000_000])
        await until(lambda: MANIFEST in s3.kept())
        s3.sign_with(ACCESS_KEY, "another")
        await blobs.put("p-1", [b"not copied"])
        await trio.sleep(0.3)
        told = await trio.to_thread.run_sync(asked, config, "backups", "--json")
        assert json.loads(told)["remote_lag_s"] >= 0.3
    shutil.rmtree(tmp_path / "state")
    told = await trio.to_thread.run_sync(lambda: asked(config, "run", code=1))
    assert "SignatureDoesNotMatch" in told, "it does not start as if there were no backup"
    s3.sign_with(ACCESS_KEY, SECRET)
    async with running_parent(config, tmp_path):
        assert b"x" * 3_000_000 == await blobs.get(MANIFEST, 3_000_000)
        assert [MANIFEST] == await blobs.names()
