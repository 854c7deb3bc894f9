"""CPU that metering running containers costs: the real meter, the real store, the server's own tick.

A container is a ``sleep`` in a control group and a pid namespace of its own; the meter knows no more of real ones.
"""

import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import trio

from bot.adapters.proc_meter import ProcMeter
from bot.adapters.store.sqlite import SqliteStore
from bot.clock import SystemClock, boot_id
from handlers.context import Policy
from handlers.domain.capacity import Capacity
from handlers.domain.ledger import MAIN_WALLET, payment
from handlers.domain.lifecycle import State
from handlers.domain.pricing import Tariff
from handlers.duties.charge import tick
from handlers.records import Container
from handlers.tables import Tx
from nips.keys import SecretKey
from tests.fakes import make_context

IMAGE = "example.com/i@sha256:" + "ab" * 32
SIZES, SECONDS = (100, 400), 65
_GROUPS = Path("/sys/fs/cgroup/cpuacct")


@contextmanager
def sleepers(count: int) -> Iterator[tuple[str, list[str]]]:
    """The parent of their groups, and the groups' names."""
    parent = f"enclbench{secrets.token_hex(4)}"
    root = (_GROUPS if _GROUPS.is_dir() else Path("/sys/fs/cgroup")) / parent
    names = [f"c{number}" for number in range(count)]
    running = []
    try:
        for name in names:
            (root / name).mkdir(parents=True)
            command = 'echo $$ > "$0" && exec sleep 100000'
            group = str(root / name / "cgroup.procs")
            spaces = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", command, group]
            running.append(subprocess.Popen(spaces))
        yield f"/{parent}", names
    finally:
        for process in running:
            process.kill()
            process.wait()
        time.sleep(1)
        for folder in [*(root / name for name in names), root]:
            folder.rmdir()


def add(tx: Tx, number: int, now: int) -> str:
    key = SecretKey.generate()
    row = Container(
        key.pubkey, key.reveal_secret(), "a" * 64, f"c{number}", "example.com/i", IMAGE, 1, Tariff(), State.DEPLOYED, now, now
    )  # fmt: skip
    tx.containers.add(row)
    tx.ledger.post(payment(f"{number:064x}", key.pubkey, MAIN_WALLET, 10**9), now)
    return key.pubkey


async def measure(count: int) -> None:
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as folder, sleepers(count) as (parent, names):
        meter = ProcMeter(parent, boot_id(), clock)
        store = SqliteStore(Path(folder) / "enclaved.sqlite")
        policy = replace(Policy(), capacity=Capacity(total_units=1_000))
        ctx = make_context(store, None, meter, clock, policy=policy)
        pubkeys = await store.write(
            lambda tx: [add(tx, number, clock.now()) for number in range(count)]
        )
        await trio.sleep(5)
        meter.expect(dict(zip(pubkeys, names, strict=True)))
        await tick(ctx)
        cpu, wall = time.process_time(), time.monotonic()
        for _ in range(SECONDS):
            await tick(ctx)
            await trio.sleep(1)
        share = (time.process_time() - cpu) / (time.monotonic() - wall)
        alive = len(meter.runs())
        store.close()
    print(f"  {alive} containers: {share * 100:.2f} % of one core", flush=True)


def run() -> None:
    print(f"\nMetering, one look a second, charged every 60 s, over {SECONDS} s")
    for count in SIZES:
        trio.run(measure, count)


if __name__ == "__main__":
    trio.run(measure, int(sys.argv[1]))
