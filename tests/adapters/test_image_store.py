"""Images in a real engine that has no network: loaded, run by id, kept within a budget, gone when they should be."""

import gzip
import json
import re
import subprocess
import tempfile
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import docker
import pytest
import trio
from backports import zstd

from bot.adapters.docker_engine import DockerConfig, DockerEngine
from bot.adapters.image_fetch import LAYERS_AT_ONCE, Pace
from bot.adapters.image_store import ImageStore, StoreConfig
from bot.adapters.oci_registry import OciRegistry
from bot.adapters.places import Bounds
from bot.adapters.registry_client import RegistryConfig
from bot.clock import SystemClock, boot_id
from bot.devstack.sample import build_image
from handlers.domain.limits import UnitSize, limits_for
from handlers.domain.plan import Live
from handlers.ports import ContainerSpec
from nips.keys import SecretKey
from tests.adapters.test_image_fetch import bomb, sparse_tar
from tests.registry_site import Layer, RegistrySite, Sent, blob_path, digest

pytestmark = [
    pytest.mark.dockerd,
    # httpcore and the SDK leave generators and sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
BUDGET_BYTES = 200_000_000
PLACES = Bounds(in_all=8, by_host=3, by_caller=2, waiting=100, waiting_by_caller=100)
QUICK = Pace(min_bytes_s=1_000, window_s=1, deadline_s=30)
COMMAND = ["/bin/sh", "-c", "exec sleep 1000"]


@pytest.fixture
async def site(nursery):
    made = RegistrySite()
    await nursery.start(made.serve)
    return made


class World:
    """An engine, its images, and Docker's own view of them."""

    def __init__(self, ground, hosts, folder, owner, **changes):
        self.registry = OciRegistry(RegistryConfig(hosts))
        kept = StoreConfig(folder, ground.socket, owner, BUDGET_BYTES, QUICK, PLACES)
        self.images = ImageStore(replace(kept, **changes), self.registry, SystemClock())
        told = DockerConfig(ground.socket, owner, ground.cgroup_parent)
        self.engine = DockerEngine(told, self.images, boot_id(), SystemClock())
        self.docker = docker.DockerClient(base_url=f"unix://{ground.socket}")
        self.folder, self.owner = folder, owner

    @property
    def repository(self):
        return f"enclaved-{self.owner[:24]}"

    def tags(self):
        """What is kept for us."""
        return {
            tag.partition(":")[2]
            for image in self.docker.images.list(name=self.repository)
            for tag in image.tags
        }

    def left(self):
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []

    async def close(self):
        with trio.CancelScope(shield=True):
            for pubkey in await self.engine.found():
                await self.engine.remove(pubkey, keep_volumes=False)
            for tag in self.tags():
                self.docker.images.remove(f"{self.repository}:{tag}")
            await self.registry.aclose()
        self.docker.close()
        self.engine.close()


@asynccontextmanager
async def world_on(ground, *sites, **changes):
    with tempfile.TemporaryDirectory() as folder:
        hosts = tuple(site.host for site in sites)
        made = World(
            ground, hosts, Path(folder) / "images", SecretKey.generate().pubkey, **changes
        )
        try:
            yield made
        finally:
            await made.close()


def runnable(name="x", size_bytes=0, pack=gzip.compress):
    """Layers of an image that runs; the first has busybox, the second is its own."""
    image = build_image("exec sleep 1000", ports=(), volumes=())
    manifest = json.loads(image.manifest)
    tar = gzip.decompress(image.blobs[manifest["layers"][0]["digest"]])
    return [Layer(pack(tar), tar), Layer.of({"name": name.encode(), "b": bytes(size_bytes)}, pack)]


def serve(site, *layers, name="a", config=None):
    config = {"config": {"Cmd": COMMAND, **(config or {})}}
    return f"{site.host}/{name}@{site.whole_image(*layers, name=name, config=config)}"


def spec_for(image, *, units=2, admin="somebody", **changes):
    wanted = {"pubkey": SecretKey.generate().pubkey, "image": image, "generation": 1,
              "limits": limits_for(units, UnitSize()), "env": {}, "volumes": (), "ports": (), "admin": admin}  # fmt: skip
    return ContainerSpec(**(wanted | changes))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
async def test_every_kind_of_layer_runs_by_the_configs_digest(ground, site, pack):
    """Through a registry that only we can reach: dockerd is cut off from it, and asks for nothing."""
    async with world_on(ground, site) as on:
        spec = spec_for(serve(site, *runnable(pack=pack)))
        assert await on.engine.start(spec) is None
        ours = {"label": f"enclaved.pubkey={spec.pubkey}"}
        container = on.docker.containers.list(filters=ours)[0]
        key = spec.image.rpartition("sha256:")[2]
        manifest = json.loads(site.pages[f"/v2/a/manifests/sha256:{key}"][2])
        assert manifest["config"]["digest"] == container.attrs["Image"]
        assert spec.image == container.labels["enclaved.image"]
        assert {key} == on.tags()
        assert [] == on.left(), "nothing stays in our folder"


def test_dockerd_reaches_no_registry(ground):
    """All of the above happens without it."""
    pull = ["docker", "-H", f"unix://{ground.socket}", "pull", f"{ground.registry}/any:1"]
    done = subprocess.run(pull, capture_output=True, text=True, timeout=60)

    assert 0 != done.returncode
    assert "refused" in done.stderr or "unreachable" in done.stderr or "timeout" in done.stderr
    inside = ["nsenter", "-t", str(ground.dockerd_pid), "-n", "--", "curl", "-sS", "-m", "5"]
    asked = subprocess.run(
        [*inside, f"http://{ground.registry}/v2/"], capture_output=True, text=True, timeout=30
    )
    assert 0 != asked.returncode, "not by plain HTTP either"


async def test_what_is_in_the_store_needs_no_registry(ground, site):
    async with world_on(ground, site) as on:
        first = spec_for(image := serve(site, *runnable()))
        assert await on.engine.start(first) is None
        asked = len(site.requests)
        site.pages.clear()
        await on.engine.halt(first.pubkey, 10)
        assert await on.engine.start(first) is None, "again"
        await on.engine.remove(first.pubkey, keep_volumes=True)
        assert await on.engine.start(replace(first, generation=2)) is None, "recreated"
        assert await on.engine.start(spec_for(image)) is None, "another one"
        await on.engine.remove(first.pubkey, keep_volumes=False)
        assert asked == len(site.requests)


async def test_one_fetch_serves_all_who_wait(ground, site):
    async with world_on(ground, site) as on:
        layers = runnable()
        image = serve(site, *layers)
        problems = []

        async def start(number):
            problems.append(await on.engine.start(spec_for(image, admin=f"caller {number}")))

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(start, number)
        assert [None] * 4 == problems
        for layer in layers:
            assert 1 == site.asked(digest(layer.packed))


async def test_the_least_recently_used_leaves_and_what_runs_stays(ground, site):
    """Three images of 30 MB, room for 80: the one that was used longest ago and that nobody runs makes room."""
    async with world_on(ground, site, store_bytes=80_000_000) as on:
        images = [serve(site, *runnable(f"{n}", 30_000_000), name=f"i{n}") for n in range(3)]
        keys = [image.rpartition(":")[2] for image in images]
        first, second = (spec_for(image) for image in images[:2])
        assert await on.engine.start(first) is None
        await on.engine.remove(first.pubkey, keep_volumes=False)
        assert await on.engine.start(second) is None
        assert set(keys[:2]) == on.tags(), "the first is kept, though nobody runs it"
        third = spec_for(images[2])
        assert await on.engine.start(third) is None
        assert set(keys[1:]) == on.tags()
        again = await on.engine.start(spec_for(images[0]))
        assert "no room for more images" in again.reason
        assert not again.permanent
        await on.engine.halt(second.pubkey, 10)
        again = await on.engine.start(spec_for(images[0]))
        assert "no room" in again.reason, "a halted container may need its image again"
        await on.engine.remove(second.pubkey, keep_volumes=False)
        assert await on.engine.start(spec_for(images[0])) is None
        assert {keys[0], keys[2]} == on.tags()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"Cmd": ["/not-there"]}, ""),
        ({"User": "nobody-knows-him"}, "nobody-knows-him"),
        ({"WorkingDir": "relative"}, ""),
    ],
)
async def test_what_cannot_be_started_leaves_with_its_image(ground, site, config, words):
    async with world_on(ground, site) as on:
        spec = spec_for(serve(site, *runnable(), config=config))
        problem = await on.engine.start(spec)
        if problem is not None:
            assert words in problem.reason
        with trio.move_on_after(10):
            while (await on.engine.found())[spec.pubkey].live is Live.RUNNING:
                await trio.sleep(0.2)
        await on.engine.remove(spec.pubkey, keep_volumes=False)
        if problem is not None:
            assert set() == on.tags()
        assert [] == on.left()


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([Layer(bomb(300 << 20), b"")], "unpack to more than 80 MB"),
        ([Layer(sparse_tar())], "sparse files"),
        ([replace(Layer.of({"a": b"b"}), diff_id="sha256:" + "1" * 64)], "something else"),
    ],
)
async def test_what_harms_never_reaches_the_engine(ground, site, layers, words):
    async with world_on(ground, site) as on:
        before = on.docker.df()["LayersSize"]
        problem = await on.engine.start(spec_for(serve(site, *runnable(), *layers)))

        assert words in problem.reason
        assert problem.permanent
        assert before == on.docker.df()["LayersSize"]
        assert set() == on.tags()
        assert [] == on.left()


async def test_an_image_for_a_larger_disk_is_refused_with_both_figures_also_when_it_is_there(
    ground, site
):
    async with world_on(ground, site) as on:
        image = serve(site, *runnable("x", 60_000_000))
        refused = await on.engine.start(spec_for(image, units=1))
        assert "MB unpack to more than 40 MB; take more units" in refused.reason
        assert await on.engine.start(spec_for(image, units=2)) is None
        refused = await on.engine.start(spec_for(image, units=1))
        assert "unpacks to 6" in refused.reason
        assert "room for 40 MB; take more units" in refused.reason
        assert refused.permanent


async def test_a_dripping_registry_stops_nobody_elses_start(ground, site, nursery):
    """Ten paid containers at a registry that drips: a victim's own registry is quick, and so is its start."""
    drip = RegistrySite()
    await nursery.start(drip.serve)
    async with world_on(ground, site, drip, pace=Pace(1_000, 3, 30)) as on:
        layers = runnable()
        slow = [serve(drip, *runnable(f"{n}"), name=f"s{n}") for n in range(10)]
        for path in [path for path in drip.pages if "/blobs/" in path]:
            page = drip.pages[path]
            if isinstance(page, Sent):
                drip.pages[path] = replace(page, drip_s=0.05)
        problems = []

        async def start(image, number):
            problems.append(await on.engine.start(spec_for(image, admin=f"c{number}")))

        async with trio.open_nursery() as flood:
            for number, image in enumerate(slow):
                flood.start_soon(start, image, number)
            await trio.sleep(0.5)
            victim = spec_for(serve(site, *layers))
            with trio.fail_after(15):
                assert await on.engine.start(victim) is None
            assert [] == problems, "the others still drip"
            assert 0 < drip.at_once <= PLACES.by_host * LAYERS_AT_ONCE
        assert 10 == len(problems)
        assert all("too slow" in problem.reason for problem in problems)
        assert not any(problem.permanent for problem in problems)
        assert max(problem.waited_s for problem in problems) >= 5, "the last stood in line"


async def test_progress_is_told_while_it_comes_and_a_broken_fetch_goes_on(ground, site):
    async with world_on(ground, site) as on:
        layers = runnable("x", 1_000, bytes)
        image = serve(site, *layers)
        path = blob_path("a", digest(layers[0].packed))
        whole = site.pages[path]
        site.pages[path] = replace(whole, hang_at=1_200_000)
        spec = spec_for(image)
        assert on.engine.progress(spec.pubkey) is None
        told = set()
        async with trio.open_nursery() as nursery:

            async def watch():
                while True:
                    told.add(on.engine.progress(spec.pubkey))
                    await trio.sleep(0.01)

            nursery.start_soon(watch)
            with trio.move_on_after(1.5):
                await on.engine.start(spec)
            nursery.cancel_scope.cancel()
        total = f"{sum(len(layer.packed) for layer in layers) / 1e6:.1f} MB"
        assert any(text and re.fullmatch(rf"fetching [01]\.\d of {total}", text) for text in told)
        assert on.engine.progress(spec.pubkey) is None
        # A crash of ours, and the registry well again: only the rest is asked for.
        site.pages[path] = whole
        site.requests.clear()
        assert await on.engine.start(spec) is None
        assert "bytes=1200000-" in [headers.get("range") for _, headers in site.requests]


async def test_what_a_crash_left_is_taken_away(ground, site):
    async with world_on(ground, site) as on:
        assert await on.engine.start(spec_for(serve(site, *runnable()))) is None
        kept = on.tags()
        loaded = on.docker.images.get(f"{on.repository}:{next(iter(kept))}")
        loaded.tag(on.repository, "loading-" + "0" * 64)
        old, new = on.folder / ("1" * 64), on.folder / ("2" * 64)
        for folder in (old, new):
            folder.mkdir()
            (folder / "layer").write_bytes(b"part")
        subprocess.run(["touch", "-d", "2 hours ago", str(old)], check=True)
        await on.engine.check()

        assert kept == on.tags()
        assert [new.name] == on.left(), "what is not old may still be gone on with"


async def test_exposed_ranges_and_odd_configs_still_make_a_container(ground, site):
    config = {"ExposedPorts": {"8000-8003/tcp": {}}, "Labels": None, "Volumes": None}
    async with world_on(ground, site) as on:
        assert await on.engine.start(spec_for(serve(site, *runnable(), config=config))) is None
