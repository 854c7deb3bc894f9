"""The engine on a real, private dockerd: limits hold, nothing escapes, every fault has a name."""

import json
import os
import subprocess
import tempfile
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import docker
import pytest
import trio

from bot.adapters.docker_engine import DockerConfig, DockerEngine, EngineUnusable
from bot.adapters.image_store import ImageStore, StoreConfig
from bot.adapters.oci_registry import OciRegistry
from bot.adapters.registry_client import RegistryConfig
from bot.clock import SystemClock, boot_id
from bot.devstack.registry import push
from bot.devstack.sample import Image, build_image
from handlers.domain.limits import UnitSize, limits_for
from handlers.domain.plan import Live
from handlers.ports import ContainerSpec
from handlers.records import PublishedPort
from nips.keys import SecretKey

pytestmark = [
    pytest.mark.dockerd,
    # The SDK leaves the sockets of a dockerd that died to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SLEEP = "echo up; exec sleep 1000"


@asynccontextmanager
async def engine_on(ground, owner=None):
    owner = owner or SecretKey.generate().pubkey
    with tempfile.TemporaryDirectory() as folder:
        registry = OciRegistry(RegistryConfig((ground.registry,)))
        store = StoreConfig(Path(folder), ground.socket, owner, 2_000_000_000)
        made = DockerEngine(
            DockerConfig(ground.socket, owner, ground.cgroup_parent),
            ImageStore(store, registry, SystemClock()),
            boot_id(),
            SystemClock(),
        )
        try:
            yield made
        finally:
            with trio.CancelScope(shield=True):
                for pubkey in await made.found():
                    await made.remove(pubkey, keep_volumes=False)
                await registry.aclose()
            made.close()


async def spec_for(ground, command=SLEEP, *, units=1, image: Image | None = None, **changes):
    image = image or build_image(command, ports=(), volumes=())
    name = "t" + SecretKey.generate().pubkey[:12]
    digest = await push(ground.registry, name, "1", image)
    spec = {
        "pubkey": SecretKey.generate().pubkey, "image": f"{ground.registry}/{name}@{digest}", "generation": 1,
        "limits": limits_for(units, UnitSize()), "env": {}, "volumes": (), "ports": (),
    }  # fmt: skip
    return ContainerSpec(**(spec | changes))


async def output(engine, spec, until="done", seconds=20):
    """What the container wrote, once it wrote ``until``."""
    with trio.fail_after(seconds):
        while until not in (text := await engine.logs(spec.pubkey, 1_000)):
            await trio.sleep(0.05)
    return text


async def live(engine, pubkey, wanted, seconds=25):
    with trio.fail_after(seconds):
        while (found := (await engine.found()).get(pubkey)) is None or found.live is not wanted:
            await trio.sleep(0.1)
    return found


async def test_start_twice_halt_start_again_and_remove(ground):
    async with engine_on(ground) as engine:
        await engine.check()
        spec = await spec_for(ground)
        assert await engine.start(spec) is None
        assert await engine.start(spec) is None, "a start may be repeated after a crash"
        assert Live.RUNNING is (await engine.found())[spec.pubkey].live
        run = engine.runs()[spec.pubkey]
        await engine.halt(spec.pubkey, 10)
        await engine.halt(spec.pubkey, 10)
        assert Live.EXITED is (await engine.found())[spec.pubkey].live
        assert {} == engine.runs()
        assert await engine.start(spec) is None
        assert run.start_tick < engine.runs()[spec.pubkey].start_tick
        await engine.remove(spec.pubkey, keep_volumes=False)
        await engine.remove(spec.pubkey, keep_volumes=False)
        assert {} == await engine.found()


async def test_what_the_docker_options_say(ground):
    async with engine_on(ground) as engine:
        spec = await spec_for(ground, units=2)
        await engine.start(spec)
        client = docker.DockerClient(base_url=f"unix://{ground.socket}")
        container = client.containers.list(filters={"label": f"enclaved.pubkey={spec.pubkey}"})[0]
        host = container.attrs["HostConfig"]
        client.close()

        assert (100_000, 20_000, 0) == (host["CpuPeriod"], host["CpuQuota"], host["NanoCpus"])
        assert 100_000_000 == host["Memory"] == host["MemorySwap"]
        assert (20, True, ["ALL"]) == (host["PidsLimit"], host["Init"], host["CapDrop"])
        assert "NET_RAW" not in " ".join(host["CapAdd"])
        assert "no-new-privileges" in host["SecurityOpt"]
        assert ("local", "1m") == (
            host["LogConfig"]["Type"],
            host["LogConfig"]["Config"]["max-size"],
        )
        assert "no" == host["RestartPolicy"]["Name"], "when it is started again is ours to decide"
        assert spec.image == container.labels["enclaved.image"]
        assert "@sha256:" in spec.image
        image_id = json.loads(build_image(SLEEP, ports=(), volumes=()).manifest)["config"][
            "digest"
        ]
        assert image_id == container.attrs["Image"] == container.attrs["Config"]["Image"]


async def test_memory_beyond_the_limit_is_killed(ground):
    command = "dd if=/dev/zero of=/dev/shm/x bs=1M count=200; echo survived; echo done; sleep 100"
    async with engine_on(ground) as engine:
        spec = await spec_for(ground, command)
        await engine.start(spec)
        text = await output(engine, spec)
        assert "200+0 records out" not in text


async def test_a_fork_bomb_stays_within_its_processes(ground):
    command = "i=0; while [ $i -lt 60 ]; do sleep 50 & i=$((i+1)); done; echo unreachable"
    async with engine_on(ground) as engine:
        spec = await spec_for(ground, command)
        await engine.start(spec)
        text = await output(engine, spec, until="fork")
        assert "unreachable" not in text


async def test_cpu_is_limited_to_the_quota(ground):
    async with engine_on(ground) as engine:
        spec = await spec_for(ground, "while :; do :; done", units=2)
        await engine.start(spec)
        path = f"/sys/fs/cgroup/cpuacct{ground.cgroup_parent}"
        if not os.path.isdir(path):
            pytest.skip("needs cgroup v1's cpuacct to read the usage")
        usage = partial(_cpu_ns, path)
        before, started = usage(), trio.current_time()
        await trio.sleep(2)
        cores = (usage() - before) / 1e9 / (trio.current_time() - started)
        assert cores < 0.3, "two units are 0.2 of a core"


def _cpu_ns(path):
    with open(f"{path}/cpuacct.usage") as file:
        return int(file.read())


async def test_capabilities_privileges_and_dangerous_calls_are_gone(ground):
    command = (
        "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status;"
        "busybox mount -t tmpfs x /tmp 2>&1; busybox unshare -n true 2>&1; busybox mknod /tmp/n c 1 1 2>&1;"
        "busybox ping -c1 127.0.0.1 2>&1; busybox chroot / true 2>&1; echo done; sleep 100"
    )
    async with engine_on(ground) as engine:
        spec = await spec_for(ground, command)
        await engine.start(spec)
        text = await output(engine, spec)
        assert "NoNewPrivs:\t1" in text
        assert "Seccomp:\t2" in text
        effective = int(text.split("CapEff:\t")[1].split()[0], 16)
        for forbidden in (13, 18, 21, 27):  # NET_RAW, SYS_CHROOT, SYS_ADMIN, MKNOD
            assert not effective >> forbidden & 1
        for refused in ("mount: ", "unshare: ", "mknod: ", "chroot: "):
            assert refused in text


SOCKETS_C = r"""
#include <sys/socket.h>
#include <stdio.h>
#include <errno.h>
#include <unistd.h>
#include <sys/wait.h>
int main(void) {
    int families[] = {1, 2, 10, 16, 17, 38, 40};
    for (int i = 0; i < 7; i++) {
        int fd = socket(families[i], families[i] == 17 ? SOCK_RAW : families[i] == 38 ? SOCK_SEQPACKET : SOCK_STREAM, 0);
        if (families[i] == 16) fd = socket(16, SOCK_RAW, 0);
        printf("family %d: %s\n", families[i], fd >= 0 ? "open" : errno == EPERM ? "EPERM" : "other error");
    }
    fflush(stdout);
    if (fork() == 0) {  /* socketcall(SYS_SOCKET, {AF_VSOCK, SOCK_STREAM, 0}) by the 32-bit entry */
        static unsigned int args[3] = {40, 1, 0};
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(102), "b"(1), "c"(args) : "memory");
        printf("int80: returned %ld\n", result);
        fflush(stdout);
        _exit(0);
    }
    int status;
    wait(&status);
    printf("int80 child: %s %d\n", WIFSIGNALED(status) ? "killed by" : "exited", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    printf("done\n");
    fflush(stdout);
    sleep(100);
}
"""


async def test_af_vsock_cannot_be_opened_not_even_by_the_32_bit_entry(ground, tmp_path):
    """Docker's default profile allows it, and with it the way to the parent past every firewall."""
    (tmp_path / "s.c").write_text(SOCKETS_C)
    build = ["gcc", "-static", "-no-pie", "-o", str(tmp_path / "s"), str(tmp_path / "s.c")]
    try:
        subprocess.run(build, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs gcc to build the probe: apt-get install gcc libc6-dev")
    image = build_image(
        "exec /bin/probe", ports=(), volumes=(), extra={"bin/probe": (tmp_path / "s").read_bytes()}
    )
    async with engine_on(ground) as engine:
        spec = await spec_for(ground, image=image)
        await engine.start(spec)
        text = await output(engine, spec)
        for family in (1, 2, 10, 16):
            assert f"family {family}: open" in text
        for family in (17, 38, 40):
            assert f"family {family}: EPERM" in text
        assert "int80: returned" not in text
        assert "int80 child: killed by 31" in text  # SIGSYS


async def test_neighbours_host_and_private_networks_are_out_of_reach(ground):
    async with engine_on(ground) as engine:
        target = await spec_for(ground, "nc -l -p 7000 -e cat; sleep 100")
        await engine.start(target)
        client = docker.DockerClient(base_url=f"unix://{ground.socket}")
        networks = client.containers.list(filters={"label": f"enclaved.pubkey={target.pubkey}"})[
            0
        ].attrs["NetworkSettings"]["Networks"]
        address = next(iter(networks.values()))["IPAddress"]
        client.close()
        host = ground.engine_address.rpartition(".")[0] + ".1"
        registry_port = ground.registry.partition(":")[2]
        probes = f"{address} 7000\n{host} {registry_port}\n{host} 22\n169.254.169.254 80"
        command = f"echo '{probes}' | while read h p; do if nc -w 2 $h $p </dev/null 2>/dev/null; then echo reached $h; fi; done; echo done; sleep 100"
        spec = await spec_for(ground, command)
        await engine.start(spec)
        assert "reached" not in await output(engine, spec, seconds=30)


async def test_every_volume_is_ours_and_survives_a_recreate(ground):
    image = build_image(
        "echo was $(cat /data/f 2>/dev/null); echo kept > /data/f; echo done; sleep 100",
        ports=(),
        volumes=("/data",),
    )
    async with engine_on(ground) as engine:
        spec = await spec_for(ground, image=image, volumes=("/data",))
        await engine.start(spec)
        await output(engine, spec)
        client = docker.DockerClient(base_url=f"unix://{ground.socket}")
        mounts = client.containers.list(filters={"label": f"enclaved.pubkey={spec.pubkey}"})[
            0
        ].attrs["Mounts"]
        assert [f"enclaved-{spec.pubkey[:24]}-0"] == [m["Name"] for m in mounts]
        await engine.remove(spec.pubkey, keep_volumes=True)
        assert Live.REMAINS is (await engine.found())[spec.pubkey].live
        await engine.start(spec)
        assert "was kept" in await output(engine, spec)
        await engine.remove(spec.pubkey, keep_volumes=False)
        assert [] == client.volumes.list(filters={"label": f"enclaved.pubkey={spec.pubkey}"})
        assert [] == client.networks.list(filters={"label": f"enclaved.pubkey={spec.pubkey}"})
        client.close()


async def test_a_volume_that_was_not_quoted_is_refused(ground):
    image = build_image(SLEEP, ports=(), volumes=("/data", "/surprise"))
    async with engine_on(ground) as engine:
        problem = await engine.start(await spec_for(ground, image=image, volumes=("/data",)))
        assert problem.permanent
        assert "other volumes" in problem.reason


async def test_an_image_that_is_larger_than_its_disk_is_refused(ground):
    image = build_image(SLEEP, ports=(), volumes=(), extra={"zeros": bytes(60_000_000)})
    async with engine_on(ground) as engine:
        problem = await engine.start(await spec_for(ground, image=image))
        assert problem.permanent
        assert "too large" in problem.reason


@pytest.mark.parametrize(
    ("image", "words"),
    [("{registry}/none@sha256:" + "0" * 64, ""), ("127.0.0.1:1/none@sha256:" + "0" * 64, "")],
)
async def test_what_cannot_be_pulled_has_a_reason(ground, image, words):
    async with engine_on(ground) as engine:
        spec = await spec_for(ground, image=build_image(SLEEP, ports=(), volumes=()))
        problem = await engine.start(
            ContainerSpec(**{**spec.__dict__, "image": image.format(registry=ground.registry)})
        )
        assert problem is not None
        assert problem.reason


async def test_an_executable_that_does_not_exist_is_the_images_fault(ground):
    image = build_image(SLEEP, ports=(), volumes=())
    manifest = json.loads(image.manifest)
    config = json.loads(image.blobs[manifest["config"]["digest"]])
    config["config"]["Cmd"] = ["/nonexistent"]
    from bot.devstack.sample import _digest, _json

    raw = _json(config)
    blobs = dict(image.blobs)
    del blobs[manifest["config"]["digest"]]
    manifest["config"].update(digest=_digest(raw), size=len(raw))
    broken = Image(blobs | {_digest(raw): raw}, _json(manifest))
    async with engine_on(ground) as engine:
        spec = await spec_for(ground, image=broken)
        problem = await engine.start(spec)
        if problem is None:  # tini starts and reports it by its exit code
            await live(engine, spec.pubkey, Live.EXITED)
            assert "exit code 127" in await engine.exit_reason(spec.pubkey)
        else:
            assert problem.permanent


async def test_what_exits_at_once_ends_as_exited_with_its_code(ground):
    async with engine_on(ground) as engine:
        spec = await spec_for(ground, "echo bye; exit 7")
        await engine.start(spec)
        await live(engine, spec.pubkey, Live.EXITED)
        assert "exit code 7" in await engine.exit_reason(spec.pubkey)
        assert "bye" in await engine.logs(spec.pubkey, 10)


async def test_published_ports_are_reached_from_this_machine(ground):
    image = build_image(ports=("8080/tcp",), volumes=())
    async with engine_on(ground) as engine:
        spec = await spec_for(ground, image=image, ports=(PublishedPort(21_777, "8080/tcp"),))
        await engine.start(spec)
        import httpcore

        with trio.fail_after(15):
            while True:
                try:
                    async with httpcore.AsyncConnectionPool() as http:
                        page = await http.request("GET", f"http://{ground.engine_address}:21777/")
                    break
                except httpcore.NetworkError:
                    await trio.sleep(0.1)
        assert b"It runs" in page.content


async def test_a_log_flood_is_bounded_on_disk(ground):
    async with engine_on(ground) as engine:
        spec = await spec_for(
            ground,
            "yes 'a line that is written without end' | head -c 20000000; echo done; sleep 100",
            units=5,
        )
        await engine.start(spec)
        with trio.fail_after(60):
            while "done" not in await engine.logs(spec.pubkey, 1):
                await trio.sleep(0.2)
        written = subprocess.run(
            ["du", "-sb", "--apparent-size", *_log_folders(ground)], capture_output=True, text=True
        ).stdout
        assert all(int(line.split()[0]) < 4_000_000 for line in written.splitlines())


def _log_folders(ground):
    from pathlib import Path

    return [str(p) for p in Path(ground.folder).glob("data/containers/*/local-logs")] or [
        "/dev/null"
    ]


async def test_only_our_own_containers_are_seen(ground):
    async with engine_on(ground) as mine, engine_on(ground) as theirs:
        spec = await spec_for(ground)
        await theirs.start(spec)
        assert {} == await mine.found()
        await mine.remove(SecretKey.generate().pubkey, keep_volumes=False)
        assert Live.RUNNING is (await theirs.found())[spec.pubkey].live


async def test_containers_outlive_a_dockerd_that_is_killed(ground):
    """kill -9 of dockerd: the container runs on, the same run goes on being charged, the API comes back."""
    async with engine_on(ground) as engine:
        spec = await spec_for(ground, "i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.2; done")
        await engine.start(spec)
        before = engine.runs()[spec.pubkey]
        pid = subprocess.run(
            ["pgrep", "-f", f"dockerd --config-file {ground.folder}/"],
            capture_output=True,
            text=True,
        )
        for number in pid.stdout.split():
            os.kill(int(number), 9)
        assert before == engine.runs()[spec.pubkey], "proof that it runs needs no dockerd"
        with trio.fail_after(40):
            while True:
                try:
                    found = await engine.found()
                    break
                except Exception:
                    await trio.sleep(0.2)
        assert Live.RUNNING is found[spec.pubkey].live
        assert before == engine.runs()[spec.pubkey]
        # A start while dockerd is away is a matter of the moment, and works afterwards.
        assert await engine.start(await spec_for(ground)) is None


async def test_an_engine_that_is_not_there_is_refused(tmp_path):
    registry, socket = OciRegistry(RegistryConfig()), str(tmp_path / "none.sock")
    images = ImageStore(StoreConfig(tmp_path, socket, "x", 0), registry, SystemClock())
    engine = DockerEngine(DockerConfig(socket, "x"), images, boot_id(), SystemClock())
    with pytest.raises(EngineUnusable, match="no Docker"):
        await engine.check()
    engine.close()
    await registry.aclose()


@pytest.mark.parametrize(
    ("lacks", "word"),
    [("MemoryLimit", "MemoryLimit"), ("PidsLimit", "PidsLimit"), ("CpuCfsQuota", "CpuCfsQuota"),
     ("SecurityOptions", "seccomp"), ("CgroupDriver", "cgroupfs")],
)  # fmt: skip
async def test_an_engine_that_cannot_enforce_limits_is_refused(ground, lacks, word):
    async with engine_on(ground) as engine:
        info = engine._client.info() | {lacks: False if lacks != "SecurityOptions" else []}
        engine._client.info = lambda: info
        with pytest.raises(EngineUnusable, match=word):
            await engine.check()
