"""The machine that an enclave is: both data planes, kill -9 of each of its programs, a clock that is wrong; and what its root holds."""

import os
import signal
from pathlib import Path

import pytest
import trio

from bot.devstack.sample import build_image
from bot.devstack.whole import Own
from tests.system.test_life import (
    COUNTS,
    _counted,
    _next_full_checkpoint,
    asked_parent,
    living,
)

pytestmark = [
    pytest.mark.dockerd,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
# By the words of its command line. containerd's shims have the same name, and live longer.
PROGRAMS = {
    "boot": ["-m", "bot", "boot"],
    "server": ["-m", "bot", "run"],
    "netstack": ["-m", "netstack", "enclave"],
    "dockerd": ["dockerd", "--config-file"],
    "containerd": ["containerd", "-c"],
}
ANSWERS = 'while :; do echo "I am here" | nc -l -p 9000 >/tmp/got; done'


def pids_inside(on):
    """Every process of the machine, by its control group."""
    groups = Path("/sys/fs/cgroup/memory", on.enclave.machine.name)
    return [int(pid) for file in groups.rglob("cgroup.procs") for pid in file.read_text().split()]


def pid_of(on, name):
    words = PROGRAMS[name]
    for pid in pids_inside(on):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:
            continue
        if any(line[at : at + len(words)] == words for at in range(len(line))):
            return pid
    return None


async def until_another(on, name, killed):
    with trio.fail_after(40):
        while (pid := pid_of(on, name)) in (None, killed):
            await trio.sleep(0.05)
    return pid


async def until_ready(on):
    """As the operator sees it."""
    with trio.fail_after(60):
        while True:
            status = await trio.to_thread.run_sync(asked_parent, on, "status")
            if status["report"].get("step") == "ready" and status["reported_s_ago"] < 3:
                return status
            await trio.sleep(0.3)


async def running(on, tenant, command, **options):
    """A container that is paid and runs; its pubkey."""
    image = await on.ground.push("sample/runs", "1", build_image(command, **options))
    deployed = await tenant.call("deploy", docker=image, units=1, amount_sat=500)
    await tenant.pay(deployed["invoice"])
    await tenant.until_state(deployed["pubkey"], "deployed")
    return deployed["pubkey"]


async def begins(tenant, pubkey):
    text = (await tenant.call("logs", pubkey=pubkey))["logs"]
    return sum("begin" in line for line in text.splitlines())


async def test_whatever_is_killed_comes_back_and_no_container_notices(record_property):
    async with living() as (on, tenant):
        pubkey = await running(on, tenant, COUNTS)
        await _counted(tenant, pubkey, "volume", at_least=1)
        told = []
        for name in PROGRAMS:
            others = {other: pid_of(on, other) for other in PROGRAMS if other != name}
            killed = pid_of(on, name)
            os.kill(killed, signal.SIGKILL)
            began = trio.current_time()
            await until_another(on, name, killed)
            await until_ready(on)
            told.append(f"{name} {trio.current_time() - began:.1f} s")
            assert others == {other: pid_of(on, other) for other in others}, (
                "adopted, or untouched"
            )
        for pid in [pid_of(on, name) for name in ("boot", "server", "dockerd", "containerd")]:
            os.kill(pid, signal.SIGKILL)
        await until_another(on, "server", pid)
        await until_ready(on)
        counted = await _counted(tenant, pubkey, "volume", at_least=1)
        assert await _counted(tenant, pubkey, "volume", at_least=counted + 2)
        assert 1 == await begins(tenant, pubkey), "it was never started again"
    record_property("figure", f"killed, and ready again: {', '.join(told)}")


@pytest.mark.parametrize("kind", ["tun", "nfqueue"])
async def test_a_container_is_reached_and_reaches_over_both_planes(kind):
    async with living(kind) as (on, tenant):
        pubkey = await running(on, tenant, ANSWERS, ports=("9000/tcp",), volumes=())
        info = await tenant.call("info", pubkey=pubkey)
        (endpoint,) = info["endpoints"]
        host, _, port = (
            endpoint["url"].rpartition(":")
            if isinstance(endpoint, dict)
            else endpoint.rpartition(":")
        )
        host = host.rpartition("/")[2]
        with trio.fail_after(30):
            while True:
                try:
                    stream = await trio.open_tcp_stream(host, int(port))
                    async with stream:
                        await stream.send_eof()
                        if b"I am here" in await stream.receive_some(100):
                            break
                except (OSError, trio.BrokenResourceError):
                    pass
                await trio.sleep(0.3)
        assert on.ground.place.engine_address == host, "the parent's public address"


OWN = "[ -e /data/n ] || echo made >/data/n; while :; do sleep 4711; done"


def own_pid(on):
    """The first process of the instance's own container that does its work."""
    for pid in pids_inside(on):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2] == [b"sleep", b"4711"]:
                return pid
        except OSError:
            continue
    return None


async def until_own(on, other_than=None):
    with trio.fail_after(60):
        while (pid := own_pid(on)) in (None, other_than):
            await trio.sleep(0.1)
    return pid


async def test_a_container_of_the_instances_own_runs_before_and_after_everything():
    image = build_image(OWN, ports=())
    async with living(builtins={"clock": Own(image)}) as (on, tenant):
        pid = await until_own(on)
        quoted = await tenant.call("quote", docker=await on.ground.push("a/b", "1", image))
        assert 10 == quoted["units_free"], "its unit is not one of those that are for sale"
        os.kill(pid, signal.SIGKILL)
        again = await until_own(on, pid)
        await _next_full_checkpoint(on)
        await on.enclave.cut_power()
        await on.enclave.start()
        await on.enclave.ready()
        await until_own(on, again)
        status = await until_ready(on)
        assert None is status["report"]["error"]


async def test_a_clock_that_is_not_the_hypervisors_halts_the_boot():
    async with living() as (on, _):
        await on.enclave.stop()
        on.enclave.module_ahead_s = 3_600
        await on.enclave.start()
        with trio.fail_after(40):
            while not (
                halted := (await trio.to_thread.run_sync(asked_parent, on, "status"))[
                    "report"
                ].get("halted")
            ):
                await trio.sleep(0.3)
        assert (
            halted.startswith("clock: the clock is 3,6") or "3600" in halted or "behind" in halted
        )
        assert pid_of(on, "server") is None, "nothing is judged by that clock"
        on.enclave.module_ahead_s = 0
        await on.enclave.stop_module()
        await on.enclave.start_module()
        await until_ready(on)
