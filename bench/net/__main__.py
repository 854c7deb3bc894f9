"""One run, side by side: every way in turn, round by round; medians, and each as a ratio to the limit.

``python -m bench.net [rounds] [seconds]``. All of it is on one machine: client, server and forwarders share
its cores, so a ratio says what the forwarder's CPU costs, not what a network card would allow.
"""

import json
import statistics
import subprocess
import sys
from contextlib import ExitStack

from bench.net.ways import REPO, every_way

TCP = {
    "TCP 1 up": (),
    "TCP 1 down": ("-R",),
    "TCP 8 up": ("-P", "8"),
    "TCP 8 down": ("-P", "8", "-R"),
}
UDP = {"UDP up": (), "UDP down": ("-R",)}
LATENCY = {"TCP request": "tcp", "UDP request": "udp", "connect": "connect"}


def iperf(way, seconds, *more):
    command = ("iperf3", "-c", way.target, "-J", "-t", str(seconds), *more)
    done = json.loads(way.lab.do("enc", *command, check=False, timeout=60))
    if "error" in done:
        raise RuntimeError(done["error"])
    return done["end"]


def tcp(way, seconds, *more):
    """Gbit/s received, and CPU seconds of the forwarders per GB."""
    before = way.cpu_s()
    received = iperf(way, seconds, *more)["sum_received"]
    return received["bits_per_second"] / 1e9, (way.cpu_s() - before) / (received["bytes"] / 1e9)


def udp(way, seconds, size, *more):
    """Gbit/s and packets/s that arrived."""
    end = iperf(way, seconds, "-u", "-b", "0", "-l", str(size), *more)["sum"]
    arrived = 1 - end["lost_percent"] / 100
    return end["bits_per_second"] * arrived / 1e9, end["packets"] * arrived / end["seconds"]


def latency(way, seconds, kind):
    command = (sys.executable, "-m", "bench.net.load", "ask", way.target, kind, str(seconds))
    done = subprocess.run([*way.lab.enter("enc"), *command], cwd=REPO, capture_output=True, text=True,
                          timeout=60, check=True)  # fmt: skip
    return json.loads(done.stdout)


def measure(way, seconds):
    """Everything once: name -> number."""
    found = {}

    def note(names, work):
        try:
            found.update(zip(names, work(), strict=True))
        except (RuntimeError, subprocess.SubprocessError, KeyError, ValueError) as error:
            print(f"   {way.name}: {names[0]}: {type(error).__name__}", flush=True)

    for name, words in TCP.items():
        note((name, f"{name} CPU"), lambda words=words: tcp(way, seconds, *words))
    for name, words in UDP.items():
        note((name, f"{name} pps"), lambda words=words: udp(way, seconds, 1_400, *words))
    note(("small", "small packets"), lambda: udp(way, seconds, 64))
    for name, kind in LATENCY.items():
        note((name, f"{name}/s"), lambda kind=kind: _latency(way, seconds, kind))
    return found


def _latency(way, seconds, kind):
    found = latency(way, seconds / 2, kind)
    return found["p50_us"], found["per_s"]


# name, unit, digits, whether more is better
ROWS = [
    *((name, "Gbit/s", 2, True) for name in TCP),
    *((f"{name} CPU", "s/GB", 2, False) for name in TCP),
    *((name, "Gbit/s", 2, True) for name in UDP),
    ("small packets", "1/s", 0, True),
    *((name, "p50 us", 0, False) for name in LATENCY),
    ("connect/s", "1/s", 0, True),
]


# What the tun plane is compared with besides the limit.
AGAINST = dict.fromkeys(("gvproxy 65k", "gvproxy 1500", "nfqueue"), (*TCP, *UDP))


def main():
    rounds, seconds = (int(x) for x in (*sys.argv[1:3], *("3", "2")[len(sys.argv) - 1 :]))
    with ExitStack() as stack:
        ways = every_way()
        for way in ways:
            stack.callback(way.down)
            way.up()
        rows = {way.name: [] for way in ways}
        for number in range(rounds):
            print(f"   round {number + 1} of {rounds}", flush=True)
            for way in ways:
                rows[way.name].append(measure(way, seconds))
    medians = {
        name: {k: statistics.median(r[k] for r in found if k in r) for k in set().union(*found)}
        for name, found in rows.items()
    }
    show(medians, rounds, seconds)


def show(medians, rounds, seconds):
    print(
        f"Medians of {rounds} rounds, {seconds} s each, every way in turn; in brackets, against direct"
    )
    print(f"{'':22}" + "".join(f"{name:>20}" for name in medians))
    for row, unit, digits, _ in ROWS:
        cells = ""
        for found in medians.values():
            value, limit = found.get(row), medians["direct"].get(row)
            ratio = f" ({value / limit:.2f})" if value is not None and limit else ""
            cells += f"{'-' if value is None else f'{value:.{digits}f}{ratio}':>20}"
        print(f"{row + ', ' + unit:22}{cells}")
    for other, rows in AGAINST.items():
        if other in medians:
            ratios = (f"{row} {medians['tun'][row] / medians[other][row]:.1f}" for row in rows)
            print(f"tun as a multiple of {other}: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
