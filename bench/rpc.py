"""RPC through the embedded relay, against the same server on nostr-sdk's client and LocalRelay."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import trio

from bench import own_server

ROUNDS, SECONDS = 3, 4
SHAPES = {"64 clients at once": 64, "one client": 1}


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that processes have used, user and system."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def start(stack: ExitStack, *arguments: str) -> dict[str, str]:
    """A process that prints one JSON line when it is ready; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    told: dict[str, str] = json.loads(process.stdout.readline())
    return told | {"pid": str(process.pid)}


def load(url: str, pubkey: str, clients: int, pids: list[int]) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.rpc_load", url, pubkey, str(clients), str(SECONDS)]
    before = cpu_s(pids)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout)
    return told | {"cpu_us": (cpu_s(pids) - before) * 1e6 / told["count"]}


def measure_ours(clients: int, *folder: str) -> dict[str, float]:
    with ExitStack() as stack:
        own = start(stack, "bench.own_server", *folder)
        return load(own["url"], own["pubkey"], clients, [int(own["pid"])])


def measure_theirs(clients: int) -> dict[str, float]:
    # Started anew each time: LocalRelay cuts a connection off at 6,000 messages a minute.
    with ExitStack() as stack:
        relay = start(stack, "bench.sdk_server", "relay")
        sdk = start(stack, "bench.sdk_server", "server", relay["url"])
        return load(relay["url"], sdk["pubkey"], clients, [int(relay["pid"]), int(sdk["pid"])])


def run() -> None:
    print("RPC: ping through the relay, NIP-44 both ways")
    print("  ours: embedded relay and server in one process (one core at most)")
    print("  theirs: LocalRelay and a server on nostr-sdk's client, two processes (two cores)")
    for shape, clients in SHAPES.items():
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(measure_ours(clients))
            theirs.append(measure_theirs(clients))
        show(shape, ours, theirs)
    with_a_past()


def with_a_past() -> None:
    """What 100,000 stored events and 20,000 rows cost each request: nothing should."""
    with tempfile.TemporaryDirectory() as folder:
        trio.run(own_server.fill, Path(folder))
        past, empty = [], []
        for _ in range(ROUNDS):
            past.append(measure_ours(64, folder))
            empty.append(measure_ours(64))
    show("64 clients, 100,000 events and 20,000 rows stored", past, empty, "empty")


def show(
    shape: str,
    ours: list[dict[str, float]],
    theirs: list[dict[str, float]],
    other: str = "nostr-sdk",
) -> None:
    print(f"  {shape} (medians of {ROUNDS} rounds in turn, {SECONDS} s each)")
    for name, unit, better in (
        ("per_s", "requests/s", "more"),
        ("p50_ms", "p50 ms", "less"),
        ("p99_ms", "p99 ms", "less"),
        ("cpu_us", "CPU us/req", "less"),
    ):
        a, b = median(x[name] for x in ours), median(x[name] for x in theirs)
        ratio = a / b if better == "more" else b / a
        print(f"    {unit:11} ours {a:9.2f}   {other} {b:9.2f}   {ratio:5.1f} x better")
