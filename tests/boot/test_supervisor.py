"""Programs that are not there, end early, or are never ready; and those that wait for them."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
import trio

import bot.boot.program_log
import bot.boot.supervisor
from bot.boot.supervisor import Program, ProgramFailed, ProgramOver, Supervisor

SLEEPS = (sys.executable, "-c", "import time; time.sleep(60)")


@pytest.fixture
def supervisor(tmp_path):
    return Supervisor(tmp_path)


@pytest.mark.parametrize("command", [("/nonexistent/program", "x"), ("/",)])
async def test_a_program_that_is_not_there_is_named(supervisor, nursery, command):
    with trio.fail_after(5), pytest.raises(ProgramFailed) as caught:
        await supervisor.start(nursery, Program("escrow", command))
    assert "escrow does not start" in str(caught.value)
    assert command[0] in str(caught.value)
    await supervisor.stop()


async def test_the_last_words_of_a_program_that_ends_each_time(supervisor, nursery):
    command = (sys.executable, "-c", "print('no licence'); raise SystemExit(1)")

    async def never():
        return False

    with trio.fail_after(20), pytest.raises(ProgramFailed, match="no licence"):
        await supervisor.start(nursery, Program("wallet", command, ready=never))
    assert supervisor.restarts("wallet") == 4


async def test_a_probe_that_raises_says_not_ready_and_is_told_once(supervisor, nursery):
    asked = 0

    async def ready():
        nonlocal asked
        asked += 1
        if asked < 4:
            raise ConnectionRefusedError
        return True

    with structlog.testing.capture_logs() as lines, trio.fail_after(10):
        await supervisor.start(nursery, Program("registry", SLEEPS, ready=ready))
    assert asked == 4
    assert [("probe failed", "registry")] == [(line["event"], line["program"]) for line in lines]
    await supervisor.stop()


async def test_what_depends_on_a_program_waits_until_it_is_up_again(supervisor, nursery, tmp_path):
    """It ended after it had been ready: whoever comes now waits for the next time."""
    may_run, is_ready = tmp_path / "may_run", True
    script = (
        "import pathlib, sys, time; time.sleep(60 if pathlib.Path(sys.argv[1]).exists() else 0)"
    )
    may_run.touch()

    async def ready():
        return is_ready

    await supervisor.start(
        nursery, Program("below", (sys.executable, "-c", script, str(may_run)), ready=ready)
    )
    is_ready = False
    may_run.unlink()
    first = supervisor.pid("below")
    await trio.run_process(["kill", "-9", str(first)])
    with trio.fail_after(10):
        while supervisor.restarts("below") == 0:
            await trio.sleep(0.01)
    started = trio.Event()

    async def start():
        await supervisor.start(nursery, Program("above", SLEEPS, after=("below",)))
        started.set()

    nursery.start_soon(start)
    await trio.sleep(0.3)
    assert not started.is_set()
    may_run.touch()
    is_ready = True
    with trio.fail_after(20):
        await started.wait()
    await supervisor.stop()


async def test_who_is_stopped_before_it_is_ready_says_so(supervisor, nursery):
    async def never():
        return False

    async def halt():
        await trio.sleep(0.3)
        await supervisor.halt("slow")

    nursery.start_soon(halt)
    with trio.fail_after(10), pytest.raises(ProgramFailed, match="slow"):
        await supervisor.start(nursery, Program("slow", SLEEPS, ready=never))


async def test_programs_end_dependents_first(supervisor, nursery, tmp_path):
    script = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    open(sys.argv[1], 'a').write(sys.argv[2])\n"
        "    raise SystemExit\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "open(sys.argv[3], 'w')\n"
        "time.sleep(60)"
    )
    ended = tmp_path / "ended"
    for name, after in (("a", ()), ("b", ("a",)), ("c", ("b",))):
        up = tmp_path / f"{name}.up"

        async def ready(up=up):
            return up.exists()

        command = (sys.executable, "-c", script, str(ended), name, str(up))
        await supervisor.start(nursery, Program(name, command, after=after, ready=ready))
    await supervisor.stop()

    assert ended.read_text() == "cba"


async def test_one_that_lives_and_is_never_ready_is_given_up_with_the_reason(supervisor, nursery):
    async def never():
        return False

    program = Program("netstack", SLEEPS, ready=never, ready_s=0.1)
    with (
        trio.fail_after(20),
        pytest.raises(
            ProgramFailed, match=r"netstack does not start: it is not ready after 0\.1 s"
        ),
    ):
        await supervisor.start(nursery, program)
    assert 4 == supervisor.restarts("netstack")
    await supervisor.stop()


async def test_one_that_says_it_must_not_be_started_again_is_not(supervisor, nursery, tmp_path):
    script = "import sys, time; time.sleep(0.3); print('error: overtaken'); sys.exit(3)"
    await supervisor.start(nursery, Program("server", (sys.executable, "-c", script), over_code=3))
    with (
        trio.fail_after(10),
        pytest.raises(ProgramOver, match="server ended for good: error: ove"),
    ):
        await supervisor.watch()
    await trio.sleep(0.5)
    assert 0 == supervisor.restarts("server")
    with trio.fail_after(5):
        await supervisor.stop()


async def test_an_end_that_comes_while_one_waits_for_another_waits_for_nobody(supervisor, nursery):
    async def never():
        return False

    async def below():
        with suppress(ProgramFailed):
            await supervisor.start(nursery, Program("below", SLEEPS, ready=never))

    nursery.start_soon(below)
    await trio.sleep(0.2)
    with trio.move_on_after(0.2):
        await supervisor.start(nursery, Program("above", SLEEPS, after=("below",)))
    with trio.fail_after(10):
        await supervisor.stop()
        with pytest.raises(ProgramFailed, match="all are being stopped"):
            await supervisor.start(nursery, Program("late", SLEEPS))


@pytest.mark.parametrize("how", ["ended for good", "never up"])
async def test_nobody_waits_for_ever_for_one_that_does_not_come_up(
    supervisor, nursery, monkeypatch, how
):
    monkeypatch.setattr(bot.boot.supervisor, "UP_S", 0.3 if how == "never up" else 60)
    ready = {"is": True}

    async def is_ready():
        return ready["is"]

    below = Program("below", SLEEPS, ready=is_ready, over_code=3)
    await supervisor.start(nursery, below)
    ready["is"] = False
    if how == "ended for good":
        await supervisor.kill("below")
    else:
        os.kill(supervisor.pid("below"), signal.SIGKILL)
        with trio.fail_after(5):
            while supervisor.restarts("below") == 0:
                await trio.sleep(0.01)
    with trio.fail_after(10), pytest.raises(ProgramFailed, match="above is not started: below is"):
        await supervisor.start(nursery, Program("above", SLEEPS, after=("below",)))
    await supervisor.stop()


async def test_one_that_will_not_end_does_not_hold_up_the_end_for_ever(
    supervisor, nursery, monkeypatch
):
    monkeypatch.setattr(bot.boot.supervisor, "STOP_MORE_S", 0.2)
    monkeypatch.setattr(supervisor, "_stop_one", lambda _: trio.sleep_forever())
    await supervisor.start(nursery, Program("stuck", SLEEPS, stop_s=0.1))
    pid = supervisor.pid("stuck")
    with trio.fail_after(5):
        await supervisor.stop()
        while Path(f"/proc/{pid}").exists():
            await trio.sleep(0.01)


async def test_a_log_that_cannot_be_bounded_takes_nobody_down(
    supervisor, nursery, tmp_path, monkeypatch
):
    def fails(*_):
        raise OSError("no")

    monkeypatch.setattr(bot.boot.program_log, "keep_newest", fails)
    monkeypatch.setattr(bot.boot.program_log, "LOOK_AT_LOG_S", 0.01)
    with structlog.testing.capture_logs() as lines:
        await supervisor.start(nursery, Program("it", SLEEPS))
        await trio.sleep(0.2)
    assert ["a log cannot be bounded"] == [line["event"] for line in lines]
    assert 0 == supervisor.restarts("it")
    await supervisor.stop()
