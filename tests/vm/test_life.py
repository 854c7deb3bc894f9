"""The file that ships, started: it is verified, does the whole job, loses its power, and is there again."""

import subprocess
import sys
import urllib.request
from dataclasses import replace

import pytest
import trio

from bot.devstack.sample import build_image
from bot.image import build, emulate
from bot.image.pcrs import pcrs_of
from nips.nip19 import npub
from tests.system.test_life import _begun, _counted, living
from tests.system.test_whole_stack import needs_root
from tests.vm.emulated import Emulated, EmulatedEnclave
from tests.vm.machine import qemu

pytestmark = [
    pytest.mark.xdist_group("vm"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SERVES = (
    "[ -e /data/n ] || echo 0 >/data/n; echo begin volume $(cat /data/n); httpd -f -v -p 8080 -h /www & "
    "while :; do echo $(($(cat /data/n) + 1)) >/data/n; echo count volume $(cat /data/n); sleep 0.5; done"
)


async def test_the_finished_image_does_the_whole_job_and_comes_back(record_property):
    async with living(machine_of=Emulated, enclave_of=EmulatedEnclave) as (on, tenant):
        identity = on.instance
        await trio.to_thread.run_sync(verify, on)
        image = await on.ground.push("sample/serves", "1", build_image(SERVES))
        began = trio.current_time()
        deployed = await tenant.call("deploy", docker=image, units=1, amount_sat=500)
        pubkey = deployed["pubkey"]
        await tenant.pay(deployed["invoice"])
        info = await tenant.until_state(pubkey, "deployed")
        deployed_s = trio.current_time() - began
        assert b"It runs" in await fetched(info["endpoints"][0])
        logs = (await tenant.call("logs", pubkey=pubkey))["logs"]
        assert f"{on.ground.place.host_address}]" in logs, "a tenant sees who comes"

        counted = await _counted(tenant, pubkey, "volume", at_least=2)
        before = await tenant.call("balance", pubkey=pubkey)
        await _next_checkpoint(on)
        await on.enclave.cut_power()
        began = trio.current_time()
        await on.enclave.start()
        assert identity == await on.enclave.ready()
        back_s = trio.current_time() - began
        await tenant.until_state(pubkey, "deployed")
        assert counted - 2 <= await _begun(tenant, pubkey, "volume")
        after = await tenant.call("balance", pubkey=pubkey)
        assert before["balance_sat"] - 60 <= after["balance_sat"] <= before["balance_sat"]
        await on.enclave.stop()
        hung = on.enclave.machine.hung
        assert [b"\xb7"] * 2 <= on.enclave.machine.heartbeats <= [b"\xb7"] * (2 + hung)
        assert "nobody waits for a heartbeat" not in on.enclave.machine.console
    record_property(
        "figure",
        f"the finished image, emulated: deployed in {deployed_s:.0f} s, power on to ready and restored {back_s:.0f} s; boots that hung and were tried again: {hung}",
    )


@pytest.mark.parametrize(("cut", "says"), [
    (0, "the hardware random generator is not nsm-hwrng"), (9, "the command line is not that of this image"),
], ids=["as it ships", "bytes moved from the command line to the kernel"])  # fmt: skip
async def test_what_ships_does_not_go_on_where_nothing_attests_it(tmp_path, cut, says):
    """What is measured of a moved byte is the same; it is init that looks."""
    needs_root()
    eif = await trio.to_thread.run_sync(build.build, build.read_lock(), build.LAYER)
    moved = replace(eif, kernel=eif.kernel + eif.cmdline[:cut], cmdline=eif.cmdline[cut:])
    assert pcrs_of(eif) == pcrs_of(moved)
    emulate.unpack(moved, tmp_path)
    machine = Emulated(tmp_path / "machine", tmp_path)
    with trio.fail_after(150):
        machine.start(emulate.command(moved, tmp_path, 2_048, qemu=qemu()))
        try:
            while machine.is_on:
                await trio.sleep(0.3)
        finally:
            machine.cut_power()
    assert says in machine.console
    assert ("init: starting" in machine.console) is (cut == 0)


def verify(on):
    """As anybody can who has the sources: it is built again, and a fresh document of what runs has its registers."""
    command = [
        sys.executable, "-m", "bot", "image", "verify", npub(on.instance), "--relay", on.relay_url, "--json",
        "--dev-root", str(on.enclave.root), "--layer", str(on.enclave.image),
        "--repo", on.enclave.people.repo, "--maintainer", npub(on.enclave.people.maintainer.pubkey),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = [pcr.hex() for pcr in pcrs_of(on.enclave.machine.eif).values()]
    assert [] == [pcr for pcr in measured if pcr not in done.stdout]


async def fetched(endpoint):
    """A container is up before its program listens."""
    url = endpoint["url"] if isinstance(endpoint, dict) else endpoint

    def fetch():
        with urllib.request.urlopen(url.replace("tcp://", "http://"), timeout=30) as answer:
            return answer.read()

    with trio.fail_after(90):
        while True:
            try:
                return await trio.to_thread.run_sync(fetch)
            except OSError:
                await trio.sleep(1)


async def _next_checkpoint(on):
    """One that begins after this, of everything."""

    async def number():
        return (await on.enclave.status())["report"]["checkpoint"]["number"]

    before = await number()
    with trio.fail_after(120):
        while await number() < before + 3:
            await trio.sleep(0.5)
