"""Figures and verdict of a soak, as printed."""

import sys
import time
from collections.abc import Sequence
from statistics import median

from bench.soak.books import Books
from bench.soak.plan import RELAY_LIMITS
from bench.soak.scene import Scene
from bench.soak.watch import Sample, Watch
from bot.adapters.seen_store import MOST_IDS, MOST_LOG_PAGES
from bot.relay.event_tables import LOG_BYTES

# Loose: what grows without end grows past these within one life of a minute under attack.
MOST_RSS_MIB, MOST_FDS, MOST_QUIET_FDS, MOST_THREADS = 60, 1_100, 40, 60
MOST_LIVES_MIB = 40
# An entry with its postings, indexes and what else its event leaves.
LEDGER_BYTES, ENTRY_BYTES = 4 << 20, 1_024
# An id with its row, in a tree whose pages are half full at worst.
SEEN_BYTES = 2 * 64
# A log may pass its limit by the transaction that found it.
PAGE_BYTES, LOG_SLACK_BYTES = 4_096, 4 << 20
# What no component sets a bound to: settings, sealed keys, logs of containers that Docker bounds.
MOST_REST_BYTES = 8 << 20


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def judge(scene: Scene, watch: Watch, books: Books) -> None:
    """Everything that was sampled, against its bounds."""
    lives = [life for life in watch.lives() if len(life) >= 3]
    for life in lives:
        _judge_life(scene, life)
    lasts = [life[-1].rss_mib for life in lives]
    if len(lasts) >= 6:
        third = len(lasts) // 3
        grown = median(lasts[-third:]) - median(lasts[:third])
        if grown > MOST_LIVES_MIB:
            scene.tally.violated(f"RSS grows from life to life: by {grown:.0f} MiB")
    _judge_files(scene, watch, books)


def _judge_life(scene: Scene, life: Sequence[Sample]) -> None:
    """The second sample after the first answer is the baseline."""
    base, last = life[1], life[-1]
    where = f"the process that lived until {last.at_s:.0f} s"
    if last.rss_mib - base.rss_mib > MOST_RSS_MIB:
        scene.tally.violated(f"RSS of {where} grows by {last.rss_mib - base.rss_mib:.0f} MiB")
    if max(sample.fds for sample in life) > MOST_FDS:
        scene.tally.violated(f"{max(sample.fds for sample in life)} descriptors of {where}")
    if last.threads - base.threads > MOST_THREADS:
        scene.tally.violated(f"threads of {where} grow by {last.threads - base.threads}")


def _judge_files(scene: Scene, watch: Watch, books: Books) -> None:
    quiet, entries = watch.samples[-1], books.figures()["ledger entries"]
    base = watch.lives()[-1][min(1, len(watch.lives()[-1]) - 1)]
    if quiet.fds - base.fds > MOST_QUIET_FDS:
        scene.tally.violated(
            f"when all is quiet, {quiet.fds - base.fds} more descriptors than at its start"
        )
    bounds = file_bounds(entries)
    rest = sum(size for name, size in quiet.files.items() if name not in bounds)
    for name, size, most in [
        *((name, quiet.files.get(name, 0), most) for name, most in bounds.items()),
        ("all other files together", rest, MOST_REST_BYTES),
    ]:
        if size > most:
            scene.tally.violated(f"{name}: {size} bytes, of {most} that it may have")


def file_bounds(ledger_entries: int) -> dict[str, int]:
    """What each file may have, by the budget of whoever writes it. The server's log has no bound: it is the host's."""
    relay = RELAY_LIMITS["max_stored_bytes"] + 2 * RELAY_LIMITS["max_own_bytes"]
    return {
        "enclaved.sqlite": LEDGER_BYTES + ENTRY_BYTES * ledger_entries,
        "enclaved.sqlite-wal": LOG_BYTES + LOG_SLACK_BYTES,
        "relay.sqlite": relay,
        "relay.sqlite-wal": LOG_BYTES + LOG_SLACK_BYTES,
        "seen.sqlite": SEEN_BYTES * MOST_IDS,
        "seen.sqlite-wal": PAGE_BYTES * MOST_LOG_PAGES + LOG_SLACK_BYTES,
        "enclaved.log": sys.maxsize,
    }


def table(scene: Scene, watch: Watch, books: Books) -> list[str]:
    """All figures, compact."""
    return [
        "",
        f"seed {scene.plan.seed}; {watch.kills} kills of the server, {watch.wallet_kills} of the wallet as well",
        *_lives(watch),
        *_pings(watch),
        *_files(watch),
        *_work(scene, books),
        *_time(watch, books),
    ]


def _lives(watch: Watch) -> list[str]:
    rows = ["life       RSS MiB             fds             threads    ping ms (up)",
            "until s    2nd  most  last     2nd  most last  2nd  most   p50    p99   lost"]  # fmt: skip
    for life in watch.lives():
        if len(life) < 2:
            continue
        base, last = life[1], life[-1]
        inside = [ms for at, ms in watch.pings if life[0].at_s - 10 <= at <= last.at_s]
        ms = [value for value in inside if value is not None]
        rows.append(
            f"{last.at_s:7.0f} {base.rss_mib:6.0f} {max(s.rss_mib for s in life):5.0f} {last.rss_mib:5.0f}   "
            f"{base.fds:5} {max(s.fds for s in life):5} {last.fds:4} {base.threads:4} {max(s.threads for s in life):5} "
            f"{percentile(ms, 50):6.0f} {percentile(ms, 99):6.0f} {len(inside) - len(ms):5}"
        )
    return rows


def _pings(watch: Watch) -> list[str]:
    ms = [value for _, value in watch.pings if value is not None]
    spans = [end - begin for begin, end in watch.scene.outages.spans if end < float("inf")]
    return [
        f"pings while up: {len(watch.pings)}, lost {len(watch.pings) - len(ms)}; "
        f"p50 {percentile(ms, 50):.0f} ms, p99 {percentile(ms, 99):.0f} ms, most {max(ms, default=0):.0f} ms",
        f"from kill to pong: median {median(spans or [0]):.1f} s, most {max(spans, default=0):.1f} s",
    ]


def _files(watch: Watch) -> list[str]:
    """At a quarter, half, three quarters, and the end."""
    if not watch.samples:
        return []
    looks = [
        watch.samples[min(len(watch.samples) - 1, len(watch.samples) * n // 4)]
        for n in range(1, 5)
    ]
    names = sorted(looks[-1].files)
    return ["KiB of files at " + ", ".join(f"{look.at_s:.0f}" for look in looks) + " s"] + [
        f"  {name:24} " + " ".join(f"{look.files.get(name, 0) / 1_024:9.0f}" for look in looks)
        for name in names
    ]


def _work(scene: Scene, books: Books) -> list[str]:
    counts = scene.tally.counts
    groups = {
        "attack": "attacks: ",
        "did": "tenants did: ",
        "not": "not done: ",
        "refused": "refused: ",
    }
    rows = [
        head + ", ".join(f"{name.removeprefix(word).strip()} {n}" for name, n in sorted(counts.items()) if name.startswith(word + " "))
        for word, head in groups.items()
    ]  # fmt: skip
    rest = {n: c for n, c in counts.items() if n.partition(" ")[0] not in groups}
    rows.append("besides: " + ", ".join(f"{name} {n}" for name, n in sorted(rest.items())))
    rows.append("books: " + ", ".join(f"{name} {n}" for name, n in books.figures().items()))
    return rows


def _time(watch: Watch, books: Books) -> list[str]:
    """What was charged of what ran; and what the process holds open when nobody asks for anything."""
    ran, charged = watch.ran(time.time()), books.charged_s()
    ran_s = sum(map(sum, ran.values()))
    return [
        f"containers ran {ran_s:.0f} s in {sum(map(len, ran.values()))} runs, charged are {sum(charged.values()):.0f} s",
        "descriptors when all is quiet: "
        + ", ".join(f"{kind} {count}" for kind, count in watch.descriptors.most_common(12)),
    ]
