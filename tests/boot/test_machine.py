"""What an enclave is before it holds secrets: steps, memory, clock, mounts, adoption, scripts."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bot.boot.adopt import adopt, noting
from bot.boot.machine.boot import Boot
from bot.boot.machine.clock_guard import Reading, why_wrong
from bot.boot.machine.engine_files import EnginePaths, EngineSettings
from bot.boot.machine.memory import Share, containers_bytes, disks_bytes, why_not_enough
from bot.boot.machine.mounts import have_bytes, mount_missing, shares_of, tmpfs_of
from bot.boot.program_log import keep_newest
from bot.boot.steps import OF_BOOT, OF_SERVER, Step, Steps
from bot.boot.supervisor import Program, ProgramFailed, Supervisor
from bot.boot.unlock import EXIT_OVERTAKEN, Halted
from bot.clock import boot_id
from bot.config import BootConfig, ConfigError, load_machine
from bot.parent.conversation import Conversation
from handlers.domain.limits import UnitSize
from netstack import vsock
from tests.conftest import REPO
from tests.mounts import mounts_below, unmount_below

NOW = Reading(1_000_000.0, 500.0, 1_000_000.2)


def later(reading, seconds, **changes):
    moved = Reading(
        reading.wall_s + seconds, reading.boot_s + seconds, reading.document_s + seconds
    )
    return replace(moved, **changes)


def test_steps_say_where_it_is_how_long_each_took_and_why_it_stands():
    now = 10.0
    steps = Steps(lambda: now)
    steps.reach(Step.PARENT)
    now += 1.5
    steps.reach(Step.MEMORY)
    steps.reach(Step.MEMORY)
    steps.halt("too little")
    assert {"step": "memory", "halted": "too little", "took_s": {"parent": 1.5}} == steps.words()
    now += 1
    steps.reach(Step.MOUNTS)
    assert (None, 1.0) == (steps.halted, steps.took_s[Step.MEMORY]), "it goes on"
    steps.finish()
    assert None is steps.words()["step"]


def test_the_list_of_steps_is_divided_between_two_processes():
    assert tuple(Step) == OF_BOOT + OF_SERVER
    assert (Step.PARENT, Step.DOCKERD) == (OF_BOOT[0], OF_BOOT[-1])
    assert (Step.STANDING, Step.READY) == (OF_SERVER[0], OF_SERVER[-1])


def test_memory_must_hold_all_that_is_promised_and_the_word_names_each_part():
    shares = [Share("disks", 600 << 20), Share("containers", 500 << 20)]
    assert None is why_not_enough(shares, 1_100 << 20)
    told = why_not_enough(shares, (1_100 << 20) - 1)
    assert "1100 MiB are promised (disks 600, containers 500)" in told
    assert "total_units" in told
    size = UnitSize()
    assert 100 * 50_000_000 == containers_bytes(100, size)
    assert 6_000_000_000 < disks_bytes(100, size) < 6_200_000_000


@pytest.mark.parametrize(
    ("reading", "word"),
    [
        (later(NOW, 3_600), None),
        (later(NOW, 60, wall_s=NOW.wall_s + 64), None),
        (later(NOW, 60, wall_s=NOW.wall_s + 66), "ahead of the hypervisor's"),
        (later(NOW, 60, wall_s=NOW.wall_s), "behind the hypervisor's"),
        (later(NOW, 60, boot_s=NOW.boot_s + 50), "set while we ran"),
        (later(NOW, 0, boot_s=NOW.boot_s + 3_600), "behind the time since boot"),
    ],
)
def test_clocks_go_together_or_none_is_believed(reading, word):
    reason = why_wrong(NOW, reading, 5)
    assert reason is None if word is None else word in reason


def test_a_hypervisor_and_a_clock_that_jump_together_are_found_by_the_time_since_boot():
    jumped = later(NOW, 60, wall_s=NOW.wall_s + 3_660, document_s=NOW.document_s + 3_660)
    assert "set while we ran" in why_wrong(NOW, jumped, 5)


def machine(tmp_path, **boot):
    lines = "".join(f"{name} = {value}\n" for name, value in boot.items())
    path = tmp_path / "enclaved.toml"
    path.write_text(
        f'[server]\nstate_dir = "{tmp_path}/state"\n[engine]\ndisks = "{tmp_path}/disks"\n'
        f'[policy.capacity]\ntotal_units = 2\n[boot]\ndata_root = "{tmp_path}/docker"\n{lines}'
    )
    return load_machine(path)


def test_every_folder_that_grows_has_a_size_and_all_of_them_are_counted(tmp_path):
    config = machine(tmp_path, layers_bytes=1 << 20)
    wanted = tmpfs_of(config)
    assert ["state", "fetched", "records", "layers", "incoming", "disks"] == [
        t.what for t in wanted
    ]
    counted = {share.what: share.bytes for share in shares_of(config)}
    assert 1 << 20 == counted["layers"]
    assert {t.what: t.bytes for t in wanted}.items() <= counted.items()
    assert 100_000_000 == counted["containers"]
    assert counted["reserve"] == BootConfig().reserve_bytes


@pytest.mark.parametrize("name", ["state_bytes", "engine_cpu_percent", "clock_apart_s"])
def test_sizes_are_not_nothing(tmp_path, name):
    with pytest.raises(ConfigError, match=f"{name} is at least 1"):
        machine(tmp_path, **{name: 0})


def test_a_configuration_of_no_enclave_does_not_boot(tmp_path):
    path = tmp_path / "plain.toml"
    path.write_text("[server]\n")
    with pytest.raises(ConfigError, match=r"no section \[boot\]"):
        load_machine(path)


def test_memory_is_the_machines_or_what_its_group_may_have(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:        2048 kB\nMemFree: 1 kB\n")
    assert 2048 * 1024 == have_bytes(tmp_path)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert 2048 * 1024 == have_bytes(tmp_path)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1000000\n")
    assert 1_000_000 == have_bytes(tmp_path)


@pytest.mark.dockerd
async def test_what_is_mounted_stays_and_what_fills_one_leaves_the_others(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount")
    wanted = tmpfs_of(machine(tmp_path, records_bytes=1 << 20, incoming_bytes=1 << 20))
    await mount_missing(wanted)
    assert {str(t.where) for t in wanted} == set(mounts_below(tmp_path))
    (tmp_path / "state/kept").write_text("kept")
    await mount_missing(wanted)
    assert "kept" == (tmp_path / "state/kept").read_text()
    with pytest.raises(OSError, match="No space left"):
        (tmp_path / "docker/full").write_bytes(bytes(2 << 20))
    (tmp_path / "docker/tmp/more").write_bytes(bytes(100_000))
    unmount_below(tmp_path)


ENDS_SLOWLY = """
import pathlib, signal, sys, time
def end(*_):
    time.sleep(0.7)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
time.sleep(60)
"""


def outliving(tmp_path):
    """Ready when it says so in its log, which is long after it was started."""
    command = [sys.executable, "-c", ENDS_SLOWLY, str(tmp_path / "end")]

    async def ready():
        return "up" in (tmp_path / "it.log").read_text()

    return Program("it", command, ready=ready, ready_s=20, stop_s=10, outlives=True)


@contextmanager
def left_behind(tmp_path, program):
    """As a supervisor leaves it that was killed right after it had started it."""
    with (tmp_path / "it.log").open("ab") as output:
        command = noting(tmp_path / "it.pid", program.command)
        process = subprocess.Popen(command, stdout=output, start_new_session=True)
    with process:
        try:
            deadline = time.monotonic() + 10
            while not (tmp_path / "it.pid").exists():
                assert time.monotonic() < deadline
            yield process.pid
        finally:
            process.kill()


async def test_who_runs_already_is_adopted_even_before_it_answers_and_ends_in_order(
    tmp_path, nursery
):
    program, successor = outliving(tmp_path), Supervisor(tmp_path)
    with left_behind(tmp_path, program) as pid:
        with trio.fail_after(20):
            await successor.start(nursery, program)
        assert pid == successor.pid("it"), "no second one was started"
        with trio.fail_after(10):
            await successor.stop()
    assert "saved" == (tmp_path / "end").read_text(), "it had its time to save"


async def test_one_that_was_adopted_and_dies_is_started_again(tmp_path, nursery):
    program, successor = outliving(tmp_path), Supervisor(tmp_path)
    with left_behind(tmp_path, program) as pid:
        await successor.start(nursery, program)
        os.kill(pid, signal.SIGKILL)
        with trio.fail_after(10):
            while successor.restarts("it") == 0 or successor.pid("it") == pid:
                await trio.sleep(0.02)
        await successor.stop()


@pytest.mark.parametrize(
    "noted", [None, "", "x y z", "1 2", "999999999 1 {boot}", "{me} 1 {boot}"]
)
def test_nobody_is_adopted_for_a_note_that_means_nobody(tmp_path, noted):
    path = tmp_path / "it.pid"
    if noted is not None:
        path.write_text(noted.format(me=os.getpid(), boot=boot_id()))
    assert None is adopt(path)


def test_who_noted_itself_is_found_and_not_in_another_boot(tmp_path):
    path = tmp_path / "it.pid"
    with left_behind(tmp_path, outliving(tmp_path)) as pid:
        found = adopt(path)
        assert pid == found.pid
        found.close()
        path.write_text(path.read_text().replace(boot_id(), "another"))
        assert None is adopt(path)


async def test_one_that_cannot_note_itself_does_not_begin_and_leaves_nobody_behind(
    tmp_path, nursery
):
    """A full disk, for one; else the next supervisor would start a second one beside it."""
    (tmp_path / "it.pid").mkdir()
    (tmp_path / "it.pid" / "full").touch()
    (tmp_path / "it.pid.new").mkdir()
    supervisor, begun = Supervisor(tmp_path), tmp_path / "begun"
    script = f"echo x >>{begun}; sleep 60"
    program = Program("it", ("/bin/sh", "-c", script), outlives=True)

    async def ready():
        return begun.exists()

    with trio.fail_after(20), pytest.raises(ProgramFailed, match=r"it\.pid\.new"):
        await supervisor.start(nursery, replace(program, ready=ready))
    assert not begun.exists()
    (tmp_path / "it.pid.new").rmdir()
    (tmp_path / "it.pid" / "full").unlink()
    (tmp_path / "it.pid").rmdir()
    await supervisor.start(nursery, replace(program, ready=ready))
    await supervisor.stop()
    assert "x\n" == begun.read_text()


def test_the_script_knows_the_code_of_one_that_must_not_be_started_again():
    script = (REPO / "enclave.sh").read_text()
    assert f'if [ "$status" -eq {EXIT_OVERTAKEN} ]' in script
    assert f"exit {EXIT_OVERTAKEN}\n" in script


def test_of_a_long_log_the_newer_half_stays_in_whole_lines(tmp_path):
    path = tmp_path / "x.log"
    path.write_text("".join(f"line {n}\n" for n in range(1_000)))
    keep_newest(path, 100_000)
    assert 1_000 == len(path.read_text().splitlines())
    keep_newest(path, 1_000)
    kept = path.read_text().splitlines()
    assert ("line 999", True) == (kept[-1], 40 < len(kept) < 60)
    assert all(line.startswith("line ") for line in kept)


def test_what_the_engine_is_told(tmp_path):
    paths = EnginePaths(tmp_path, tmp_path / "data", tmp_path / "docker.sock")
    paths.write(EngineSettings("/tenants", network={"ip-masq": False}))
    told = (tmp_path / "daemon.json").read_text()
    for words in (
        '"live-restore": true',
        '"icc": false',
        '"cgroup-parent": "/tenants"',
        '"ip-masq": false',
    ):
        assert words in told
    assert str(paths.containerd_socket) in (tmp_path / "containerd.toml").read_text()


def run_script(name, *arguments, **environment):
    command = ["sh", str(REPO / name), *arguments]
    return subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_an_enclave_without_its_own_randomness_does_not_start(tmp_path):
    if (
        Path("/sys/devices/virtual/misc/hw_random/rng_current").exists()
        and "nsm" in Path("/sys/devices/virtual/misc/hw_random/rng_current").read_text()
    ):
        pytest.fail("this machine is an enclave")
    done = run_script("enclave.sh", ENCLAVED_CONFIG=str(tmp_path / "none.toml"))
    assert 1 == done.returncode
    assert "not nsm-hwrng" in done.stderr


def test_a_host_that_lacks_things_is_told_all_of_them_at_once(tmp_path):
    done = run_script("launch-parent.sh", str(tmp_path / "none.toml"))
    assert 1 == done.returncode
    for words in ("there is no configuration", "/dev/nitro_enclaves", "allocator"):
        assert words in done.stderr


class Parent:
    """Listens where an enclave's parent does, and answers as it likes."""

    def __init__(self, path, answer):
        self.path, self._answer, self.heard = path, answer, []

    async def run(self, task_status=trio.TASK_STATUS_IGNORED):
        listener = await vsock.listen(vsock.parse_address(f"unix:{self.path}"))
        task_status.started()
        async with trio.open_nursery() as nursery:
            async for sock in vsock.accept_forever(listener, None):
                nursery.start_soon(self._talk, sock)

    async def _talk(self, sock):
        # Whom the enclave does not want to hear any more, it hangs up on.
        with sock, suppress(OSError):
            talk = Conversation(sock)
            while (line := await talk.line(float("inf"))) is not None:
                request = json.loads(line)
                self.heard.append((request["method"], request.get("params")))
                await self._answer(talk, request)


async def agrees(talk, request):
    await talk.send(json.dumps({"id": request["id"], "result": "ok"}).encode() + b"\n")


async def says_nothing(talk, request):
    await trio.sleep_forever()


def orders(*events):
    async def answer(talk, request):
        await agrees(talk, request)
        if request["method"] == "events":
            for event in events:
                await talk.send(event)

    return answer


def leaf(error):
    return leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


@asynccontextmanager
async def booting(tmp_path, answer):
    """A boot that comes as far as memory: more is promised than there is."""
    path = tmp_path / "enclaved.toml"
    path.write_text(
        f'[server]\nstate_dir = "{tmp_path}/state"\n[engine]\ndisks = "{tmp_path}/disks"\n'
        f'[parent]\naddress = "unix:{tmp_path}/parent.sock"\n'
        f'[policy.capacity]\ntotal_units = 100000\n[boot]\ndata_root = "{tmp_path}/docker"\n'
        f'run_dir = "{tmp_path}/run"\nlog_dir = "{tmp_path}/log"\n'
    )
    parent, boot = Parent(tmp_path / "parent.sock", answer), Boot(path, load_machine(path))
    async with trio.open_nursery() as nursery:
        await nursery.start(parent.run)
        with trio.fail_after(20):
            yield boot, parent
        nursery.cancel_scope.cancel()


async def test_what_is_promised_twice_halts_before_anything_is_mounted_and_the_parent_is_told(
    tmp_path,
):
    async with booting(tmp_path, agrees) as (boot, parent):
        with pytest.RaisesGroup(Halted, flatten_subgroups=True) as caught:
            await boot.run()
        reason = str(leaf(caught.value))
        assert reason.startswith("memory: memory is ")
        told = [params["text"] for method, params in parent.heard if method == "log"]
        assert [f"halted: {reason}"] == told
        reports = [params for method, params in parent.heard if method == "report"]
        assert ("memory", reason) == (reports[-1]["step"], reports[-1]["halted"])
    assert [] == mounts_below(tmp_path)


@pytest.mark.parametrize("answer", [says_nothing, orders(b'{"type": "shutdown"}\n')])
async def test_a_boot_that_waits_for_its_parent_ends_when_it_is_told(tmp_path, answer):
    """By a signal, or by the parent itself; a parent that never answers keeps it waiting, and nothing else."""

    async def silent_but_for_events(talk, request):
        await (answer if request["method"] == "events" else says_nothing)(talk, request)

    async with (
        booting(tmp_path, silent_but_for_events) as (boot, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(boot.run)
        await trio.sleep(0.3)
        assert boot.steps.words()["step"] in ("parent", None)
        if answer is says_nothing:
            boot.end()


async def test_words_of_a_parent_that_mean_nothing_end_nothing(tmp_path):
    nonsense = (b'{"type": "restart"}\n', b'{"type": "shutdown now"}\n', b"\xff\xfe\n", b"[]\n")

    async def talks_nonsense(talk, request):
        await (orders(*nonsense) if request["method"] == "events" else says_nothing)(talk, request)

    async with booting(tmp_path, talks_nonsense) as (boot, _), trio.open_nursery() as nursery:
        nursery.start_soon(boot.run)
        await trio.sleep(0.5)
        assert "parent" == boot.steps.words()["step"]
        boot.end()
