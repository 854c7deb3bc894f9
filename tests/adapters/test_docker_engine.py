"""The engine on a real, private dockerd: limits hold, nothing escapes, every fault has a name."""

import json
import os
import subprocess
import tempfile
from contextlib import asynccontextmanager
from dataclasses import replace
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
    extra = {"bin/probe": built(tmp_path, SOCKETS_C)}
    image = build_image("exec /bin/probe", ports=(), volumes=(), extra=extra)
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


SPOOF_C = r"""
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
static struct sockaddr_in at(const char *address, int port) {
    struct sockaddr_in it = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, address, &it.sin_addr);
    return it;
}
int main(void) {
    const char *neighbour = getenv("NEIGHBOUR");
    struct sockaddr_in source = at(neighbour, 0), to = at(getenv("GATEWAY"), 7070);
    int one = 1, fd = socket(AF_INET, SOCK_DGRAM, 0);
    setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &one, sizeof one);
    int bound = bind(fd, (void *)&source, sizeof source);
    printf("freebind: %s\n", bound == 0 && sendto(fd, "x", 1, 0, (void *)&to, sizeof to) == 1 ? "sent" : "refused");
    printf("transparent: %s\n", setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &one, sizeof one) == 0 ? "set" : "refused");
    char space[CMSG_SPACE(sizeof(struct in_pktinfo))] = {0};
    struct iovec part = {"x", 1};
    struct msghdr message = {&to, sizeof to, &part, 1, space, sizeof space, 0};
    struct cmsghdr *extra = CMSG_FIRSTHDR(&message);
    extra->cmsg_level = IPPROTO_IP, extra->cmsg_type = IP_PKTINFO, extra->cmsg_len = CMSG_LEN(sizeof(struct in_pktinfo));
    ((struct in_pktinfo *)CMSG_DATA(extra))->ipi_spec_dst = source.sin_addr;
    printf("pktinfo: %s\n", sendmsg(socket(AF_INET, SOCK_DGRAM, 0), &message, 0) == 1 ? "sent" : "refused");
    printf("raw: %s\n", socket(AF_INET, SOCK_RAW, 255) >= 0 ? "open" : "refused");
    int plain = socket(AF_INET, SOCK_DGRAM, 0);
    printf("own address: %s\n", sendto(plain, "x", 1, 0, (void *)&to, sizeof to) == 1 ? "sent" : "refused");
    struct sockaddr_in all = at("255.255.255.255", 7001), there = at(neighbour, 7001);
    setsockopt(plain, SOL_SOCKET, SO_BROADCAST, &one, sizeof one);
    for (int i = 0; i < 20; i++) {
        sendto(plain, "from a neighbour", 16, 0, (void *)&all, sizeof all);
        sendto(plain, "from a neighbour", 16, 0, (void *)&there, sizeof there);
        usleep(50000);
    }
    printf("done\n");
    fflush(stdout);
    sleep(100);
}
"""


def built(tmp_path, source):
    """A static program, from C."""
    (tmp_path / "s.c").write_text(source)
    build = ["gcc", "-static", "-no-pie", "-o", str(tmp_path / "s"), str(tmp_path / "s.c")]
    try:
        subprocess.run(build, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs gcc to build the probe: apt-get install gcc libc6-dev")
    return (tmp_path / "s").read_bytes()


def address_of(ground, spec):
    """Where a container is, and our end of its bridge."""
    client = docker.DockerClient(base_url=f"unix://{ground.socket}")
    container = client.containers.list(filters={"label": f"enclaved.pubkey={spec.pubkey}"})[0]
    (network,) = container.attrs["NetworkSettings"]["Networks"].values()
    client.close()
    return network["IPAddress"], network["Gateway"]


async def test_neighbours_cannot_be_discovered_nor_spoken_to_nor_spoken_for(ground, tmp_path):
    """All are on one bridge: below IP they are kept apart by its ports, and nobody can send as somebody else."""
    listen = "nc -u -l -p 7001 & nc -l -p 7000 & echo up; sleep 100"
    async with engine_on(ground) as engine, trio.open_nursery() as nursery:
        nursery.start_soon(engine.watch)
        target = await spec_for(ground, listen)
        await engine.start(target)
        await output(engine, target, "up")
        neighbour, gateway = address_of(ground, target)
        command = (
            f"for h in {neighbour} {gateway}; do nc -w 1 $h 7000 </dev/null; done 2>/dev/null;"
            "sed 's/^/arp /' /proc/net/arp; sed 's/^/resolv /' /etc/resolv.conf; cat /proc/net/if_inet6 | sed 's/^/six /'; exec /bin/spoof"
        )
        image = build_image(
            command, ports=(), volumes=(), extra={"bin/spoof": built(tmp_path, SPOOF_C)}
        )
        env = {"NEIGHBOUR": neighbour, "GATEWAY": gateway}
        spec = await spec_for(ground, image=image, env=env)
        await engine.start(spec)
        text = await output(engine, spec)
        lines = [line.split()[1:] for line in text.splitlines()]
        arp = {
            line[1]: (line[3], line[4]) for line in lines if line[0] == "arp" and line[1] != "IP"
        }
        assert "0x2" == arp[gateway][0], "our own end answers"
        assert ("0x0", "00:00:00:00:00:00") == arp.get(neighbour, ("0x0", "00:00:00:00:00:00"))
        assert "127.0.0.11" not in text, "no resolver that knows neighbours by name"
        assert [] == [line for line in lines if line[0] == "six" and line[-1] != "lo"]
        for way in ("freebind", "transparent", "pktinfo", "raw"):
            assert f"{way}: refused" in text
        assert "own address: sent" in text
        assert "from a neighbour" not in await engine.logs(target.pubkey, 100)
        assert {neighbour, address_of(ground, spec)[0]} == set(await engine.addresses())
        nursery.cancel_scope.cancel()


async def test_ports_of_the_bridge_are_isolated_before_a_start_is_reported(ground):
    async with engine_on(ground) as engine:
        await engine.start(await spec_for(ground))
        show = [
            "nsenter",
            "-t",
            str(ground.dockerd_pid),
            "-n",
            "--",
            "bridge",
            "-d",
            "link",
            "show",
        ]
        shown = subprocess.check_output(show, text=True)
        assert 1 <= shown.count("master docker0")
        assert shown.count("master docker0") == shown.count("isolated on")


async def test_open_files_are_limited(ground):
    """All of them could be inotify instances or anything else that the machine has only so many of."""
    async with engine_on(ground) as engine:
        spec = await spec_for(
            ground, "ulimit -n; ulimit -Hn; ulimit -n 5000 2>&1; echo done; sleep 100"
        )
        await engine.start(spec)
        text = await output(engine, spec)
        soft, hard = (line.split()[1] for line in text.splitlines()[:2])
        assert ("1024", "1024") == (soft, hard)
        assert "ermi" in text.splitlines()[2], "not permitted to have more"


async def test_a_wrong_cgroup_parent_is_refused(ground):
    async with engine_on(ground) as engine:
        await engine.check()
    wrong = replace(ground, cgroup_parent="/docker")
    async with engine_on(wrong) as engine:
        with pytest.raises(EngineUnusable, match="cgroup_parent '/docker'"):
            await engine.check()


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
