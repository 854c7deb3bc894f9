"""Checkpoints against what the idea came with, `age | rclone rcat`, and against restic; side by side on the same bytes.

A gigabyte of noise in memory; the keeper is a process of its own at the end of a Unix stream, and its folder is on this
machine's disk. Each figure is the median of the rounds.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import trio

from bot.adapters.disks.copies import Copying, DiskCopies
from bot.adapters.disks.disks import Disks
from bot.checkpoint.restore import read_manifest, read_state, restore
from bot.checkpoint.saver import Saver
from bot.checkpoint.scan import scan
from bot.checkpoint.seal import Sealer
from bot.parent.client import ParentBlobs, ParentChannel, ParentSilent
from keycrux_client.shares import DiskKey
from netstack.vsock import parse_address

SIZE, PAGE, DIRTY, ROUNDS, IDLE = 1 << 30, 4_096, 100, 3, 20


def run() -> None:
    for program in ("age", "rclone", "restic"):
        if shutil.which(program) is None:
            sys.exit(f"bench checkpoint: {program} is missing: apt-get install {program}")
    memory = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="bench-"))
    disk = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="bench-"))
    try:
        image = memory / "disk.img"
        with image.open("wb") as file:
            for _ in range(SIZE >> 20):
                file.write(os.urandom(1 << 20))
        found = {name: [] for name in ("first", "again", "restore")}
        for _ in range(ROUNDS):
            ours = trio.run(_ours, image, disk)
            pipe, restic = _pipe(image, disk, memory), _restic(image, disk, memory)
            for name in found:
                found[name].append((ours[name], pipe.get(name), restic.get(name)))
        _print(found)
        print(
            f"  {IDLE} idle containers' disks: {_idle(memory) * 1e3:.1f} ms of CPU a minute (aim: under 600)"
        )
    finally:
        shutil.rmtree(memory)
        shutil.rmtree(disk)


def _idle(memory: Path) -> float:
    """CPU seconds of one look at the disks of containers that wrote nothing since the last copy."""
    folder = memory / "disks"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "disks", str(folder)], check=True)
    disks = Disks(folder)
    try:
        for number in range(IDLE):
            disks.volume(f"box{number}", 0, 2_000_000)
        copies = DiskCopies(disks, "/nobody")
        first = Copying()
        names = [snapshot.name for snapshot in copies.take(first, {}, lambda _: False)]
        copies.kept(first)
        began = time.process_time()
        for _ in range(ROUNDS):
            again = Copying()
            assert list(copies.take(again, {}, names.__contains__)) == []
            copies.kept(again)
        return (time.process_time() - began) / ROUNDS
    finally:
        for number in range(IDLE):
            disks.drop(f"box{number}")
        time.sleep(0.5)
        subprocess.run(["umount", str(folder)], check=True)


def _print(found) -> None:
    titles = {
        "first": "first checkpoint of 1 GiB",
        "again": f"{DIRTY} dirty pages of it",
        "restore": "restore of 1 GiB",
    }
    print("checkpoint: seconds, median of", ROUNDS)
    for name, rows in found.items():
        ours, pipe, restic = (
            median(values) if all(v is not None for v in values) else None
            for values in zip(*rows, strict=True)
        )
        told = [f"ours {ours:.2f}"]
        for title, other in (("age | rclone", pipe), ("restic", restic)):
            if other is not None:
                told.append(f"{title} {other:.2f} ({other / ours:.1f}x)")
        print(f"  {titles[name]:28} " + ", ".join(told))


def _dirty(image: Path) -> None:
    with image.open("r+b") as file:
        for _ in range(DIRTY):
            file.seek(secrets.randbelow(SIZE // PAGE) * PAGE)
            file.write(os.urandom(PAGE))


async def _ours(image: Path, disk: Path) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(dir=disk))
    config = folder / "parent.toml"
    config.write_text(
        f'listen = "unix:{folder}/vsock"\noperator = "unix:{folder}/operator"\nstate = "{folder}/state"\n'
    )
    command = [sys.executable, "-m", "bot", "parent", "run", "--config", str(config)]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        channel = ParentChannel(parse_address(f"unix:{folder}/vsock"))
        await _answering(channel)
        return await _measured(ParentBlobs(channel), image)
    finally:
        parent.terminate()
        parent.wait()
        shutil.rmtree(folder)


async def _answering(channel: ParentChannel) -> None:
    with trio.fail_after(20):
        while True:
            try:
                await channel.ask("get_ip")
                return
            except ParentSilent:
                await trio.sleep(0.05)


async def _measured(blobs: ParentBlobs, image: Path) -> dict[str, float]:
    sealer = Sealer(DiskKey.generate())
    saver = Saver(sealer, blobs, 1, None)

    async def save() -> float:
        began = time.perf_counter()
        snapshot = await trio.to_thread.run_sync(scan, image, "disk")
        await saver.save([snapshot], [], b"", 0)
        return time.perf_counter() - began

    first = await save()
    _dirty(image)
    again = await save()
    head = saver.last.head
    target = image.with_name("restored.img")
    began = time.perf_counter()
    manifest = await read_manifest(sealer, blobs, head)
    state = await read_state(sealer, blobs, manifest, head)
    file = os.open(target, os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, SIZE)
    await restore(sealer, blobs, state, {"disk": lambda at, data: os.pwrite(file, data, at)})
    os.close(file)
    took = time.perf_counter() - began
    assert target.read_bytes() == image.read_bytes()
    target.unlink()
    return {"first": first, "again": again, "restore": took}


def _pipe(image: Path, disk: Path, memory: Path) -> dict[str, float]:
    """As the seed had it: encrypted as a stream to an age recipient, and handed to a remote over HTTP."""
    folder = Path(tempfile.mkdtemp(dir=disk))
    key = folder / "key"
    made = subprocess.run(
        ["age-keygen", "-o", str(key)], capture_output=True, text=True, check=True
    )
    recipient = made.stderr.split()[-1]
    (folder / "kept").mkdir()
    serve = ["rclone", "serve", "webdav", str(folder / "kept"), "--addr", "127.0.0.1:0", "-v"]
    server = subprocess.Popen(serve, stderr=subprocess.PIPE, text=True)
    try:
        url = (
            next(line for line in server.stderr if "http://" in line)
            .split("http://")[1]
            .strip(" ]/\n")
        )
        remote = f":webdav,url='http://{url}':"
        began = time.perf_counter()
        _shell(f'age -r {recipient} < {image} | rclone rcat "{remote}disk.age"')
        first = time.perf_counter() - began
        began = time.perf_counter()
        _shell(f'rclone cat "{remote}disk.age" | age -d -i {key} > {memory}/back.img')
        took = time.perf_counter() - began
        (memory / "back.img").unlink()
        return {"first": first, "restore": took}
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
        shutil.rmtree(folder)


def _restic(image: Path, disk: Path, memory: Path) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(dir=disk))
    (folder / "password").write_text("bench")
    base = [
        "restic",
        "-q",
        "-r",
        str(folder / "repo"),
        "-p",
        str(folder / "password"),
        "--no-cache",
    ]
    try:
        subprocess.run([*base, "init"], check=True, capture_output=True)
        began = time.perf_counter()
        subprocess.run([*base, "backup", str(image)], check=True, capture_output=True)
        first = time.perf_counter() - began
        _dirty(image)
        began = time.perf_counter()
        subprocess.run([*base, "backup", "--force", str(image)], check=True, capture_output=True)
        again = time.perf_counter() - began
        listed = subprocess.run(
            [*base, "snapshots", "--json"], check=True, capture_output=True
        ).stdout
        began = time.perf_counter()
        command = [*base, "restore", json.loads(listed)[-1]["id"], "-t", str(memory / "restic")]
        subprocess.run(command, check=True, capture_output=True)
        took = time.perf_counter() - began
        shutil.rmtree(memory / "restic")
        return {"first": first, "again": again, "restore": took}
    finally:
        shutil.rmtree(folder)


def _shell(text: str) -> None:
    subprocess.run(["bash", "-o", "pipefail", "-c", text], check=True, stderr=subprocess.DEVNULL)
