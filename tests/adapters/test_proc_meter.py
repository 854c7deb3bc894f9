"""Runs of processes in a cgroup and a pid namespace of their own: no engine, the meter alone."""

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from bot.adapters.proc_meter import LOOK_MS, UNMETERED_MS, ProcMeter
from bot.clock import SystemClock
from tests.fakes import FakeClock

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for cgroups")
SLEEP = "import time; time.sleep(100)"
# The main thread leaves by exit(2), SYS_exit 60; another goes on until it reads a line.
HEADLESS = """
import ctypes, sys, threading
threading.Thread(target=lambda: (sys.stdin.readline(), __import__("os")._exit(0))).start()
print("up", flush=True)
ctypes.CDLL(None).syscall(60, 0)
"""


@dataclass
class Place:
    """Groups below one parent, and what runs in them."""

    parent: str
    root: Path
    started: list[subprocess.Popen] = field(default_factory=list)

    def group(self, container):
        path = self.root / container
        path.mkdir(parents=True, exist_ok=True)
        return path / "cgroup.procs"

    def run(self, container, code, *, namespace=True):
        join = 'echo $$ > "$0" && exec "$@"'
        spaces = ["unshare", "--pid", "--fork", "--kill-child"] if namespace else []
        process = subprocess.Popen(
            [*spaces, "sh", "-c", join, str(self.group(container)), sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def pids(self, container):
        return [int(line) for line in self.group(container).read_text().split()]


@pytest.fixture
def place():
    v1 = Path("/sys/fs/cgroup/cpuacct")
    parent = f"/encltest{secrets.token_hex(4)}"
    made = Place(parent, (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / parent.strip("/"))
    yield made
    for process in made.started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
    for folder in [*(path for path in made.root.glob("*") if path.is_dir()), made.root]:
        _remove(folder)


def _remove(folder):
    """Once the last process has left it."""
    for _ in range(200):
        try:
            folder.rmdir()
            return
        except OSError:
            time.sleep(0.02)


@contextmanager
def metering(place, clock=None):
    meter = ProcMeter(place.parent, "boot", clock or SystemClock())
    try:
        yield meter
    finally:
        meter.close()


async def until(condition, seconds=15):
    with trio.fail_after(seconds):
        while not (value := condition()):
            await trio.sleep(0.01)
    return value


async def first(place, meter, container="c"):
    """Its run, once its first process is in its group."""
    place.run(container, SLEEP)
    meter.expect({"key": container})
    return (await until(meter.runs))["key"]


async def test_a_run_is_its_first_process_and_ends_with_it(place):
    with metering(place) as meter:
        run = await first(place, meter)
        await until(lambda: len(place.pids("c")) == 1)
        assert meter.runs() == {"key": run}
        assert "boot" == run.boot_id
        assert run.started_ms <= SystemClock().boot_ms()
        assert meter.ended() == []
        os.kill(place.pids("c")[0], signal.SIGKILL)
        await until(meter.ended)
        (ended,) = meter.ended()
        assert ("key", run) == (ended.pubkey, ended.run)
        assert run.started_ms <= ended.last_seen_ms <= SystemClock().boot_ms()
        assert meter.runs() == {}
        meter.forget_ended(ended)
        assert meter.ended() == []


async def test_a_first_process_whose_main_thread_has_left_runs_on(place):
    """/proc calls it a zombie; it would be hosted for nothing for as long as it likes."""
    process = place.run("c", HEADLESS)
    with metering(place) as meter:
        assert process.stdout.readline() == b"up\n"
        (pid,) = place.pids("c")
        await until(lambda: "State:\tZ" in Path(f"/proc/{pid}/status").read_text())
        meter.expect({"key": "c"})  # found as such, not only gone on with
        run = meter.runs()["key"]
        assert meter.runs() == {"key": run}
        assert meter.ended() == []
        process.stdin.write(b"\n")
        process.stdin.flush()
        await until(meter.ended)
        assert meter.runs() == {}


async def test_what_is_not_first_in_its_namespace_is_no_run(place):
    """The runtime's own stages pass through the container's group, and end while it runs."""
    with metering(place) as meter:
        place.run("c", SLEEP, namespace=False)
        await until(lambda: place.pids("c"))
        meter.expect({"key": "c"})
        assert meter.runs() == {}
        run = (await first(place, meter)), place.pids("c")
        assert meter.runs() == {"key": run[0]}


async def test_the_end_of_a_run_is_known_to_the_moment(place):
    with metering(place) as meter:
        await first(place, meter)
        with trio.fail_after(15):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(meter.wait_end)
                await trio.sleep(0.3)
                before_ms = SystemClock().boot_ms()
                os.kill(place.pids("c")[0], signal.SIGKILL)
        (ended,) = meter.ended()
        assert before_ms <= ended.last_seen_ms <= SystemClock().boot_ms()


async def test_an_end_that_is_heard_of_late_is_not_charged_for_the_time_between(place):
    clock = FakeClock()
    with metering(place, clock) as meter:
        await first(place, meter)
        looked_ms = clock.boot_ms()
        os.kill(place.pids("c")[0], signal.SIGKILL)
        clock.advance(3_600)
        await until(meter.ended)
        assert looked_ms + LOOK_MS == meter.ended()[0].last_seen_ms


async def test_an_ended_run_is_found_by_looking_too(place):
    with metering(place) as meter:
        run = await first(place, meter)
        os.kill(place.pids("c")[0], signal.SIGKILL)
        await until(lambda: meter.runs() == {})
        assert [run] == [ended.run for ended in meter.ended()]


async def test_what_is_called_running_and_has_no_run_is_told_after_a_while(place):
    clock = FakeClock()
    with metering(place, clock) as meter:
        meter.expect({"key": "c"})
        clock.advance(UNMETERED_MS / 1_000 - 1)
        meter.expect({"key": "c"})
        assert meter.unmetered() == frozenset()
        clock.advance(1)
        meter.expect({"key": "c"})
        assert meter.unmetered() == {"key"}
        await first(place, meter)
        assert meter.unmetered() == frozenset()


async def test_what_is_started_anew_is_waited_for_anew(place):
    clock = FakeClock()
    with metering(place, clock) as meter:
        meter.expect({"key": "c"})
        clock.advance(60)
        meter.expect_one("key", "c")
        meter.expect({"key": "c"})
        assert meter.unmetered() == frozenset()
        meter.expect({})
        clock.advance(60)
        assert meter.unmetered() == frozenset()
