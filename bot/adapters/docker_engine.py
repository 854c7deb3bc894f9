"""The engine on Docker: the SDK in worker threads, at most four starts at once.

What each container may do is in `bot.adapters.engine.walls`, where it lives in `bot.adapters.engine.bridge`, and
what makes us believe in both in `bot.adapters.engine.proof`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
import structlog
import trio
from docker.errors import APIError, DockerException, NotFound

from bot.adapters.disks.disks import Disks
from bot.adapters.engine.bridge import NAME as BRIDGE
from bot.adapters.engine.bridge import Bridge, drop_own_networks, find_bridge
from bot.adapters.engine.isolation import Isolation
from bot.adapters.engine.listing import addresses, listed
from bot.adapters.engine.names import (
    GENERATION,
    HOST_NAME,
    IMAGE,
    PUBKEY,
    DockerConfig,
    EngineUnusable,
    container_name,
)
from bot.adapters.engine.proof import Proof
from bot.adapters.engine.walls import NO_HEALTH_CHECK, walls
from bot.adapters.image_store import ENGINE_FAULTS, ImageStore
from bot.adapters.kept_logs import KeptLogs
from bot.adapters.proc_meter import ProcMeter
from handlers.domain.meter import Ended, Run
from handlers.domain.plan import Found, Live
from handlers.ports import CannotStart, Clock, ContainerSpec

__all__ = ["HOST_NAME", "DockerConfig", "DockerEngine", "EngineUnusable"]
log = structlog.get_logger()
T = TypeVar("T")
MAX_STARTS = 4
MAX_LOG_BYTES, MAX_LOG_LINES = 1_000_000, 1_000
# How the engine says that a program cannot be executed, or is not there: as a shell does.
NOT_EXECUTABLE, NOT_THERE = 126, 127


class DockerEngine:
    """`handlers.ports.Engine`."""

    def __init__(
        self, config: DockerConfig, images: ImageStore, boot_id: str, clock: Clock
    ) -> None:
        self._config = config
        self._images = images
        self._new_meter = partial(ProcMeter, config.cgroup_parent, boot_id, clock)
        self._meter = self._new_meter()
        self._starts = trio.CapacityLimiter(MAX_STARTS)
        self._calls = trio.CapacityLimiter(8)
        self._kept_logs = KeptLogs(config.kept_logs)
        self.disks = Disks(config.disks) if config.disks is not None else None
        self._place: tuple[Bridge, Isolation] | None = None
        self._finding = trio.Lock()

    @cached_property
    def _client(self) -> docker.DockerClient:
        # Made at the first use, in a worker thread: the SDK asks the engine for its version at once.
        return docker.DockerClient(
            base_url=f"unix://{self._config.socket}", timeout=120, max_pool_size=16
        )

    async def check(self) -> None:
        """Raise `EngineUnusable` when what we promise does not hold on this machine; some of it is tried out."""
        try:
            info = await self._call(lambda: self._client.info())
        except (DockerException, requests.exceptions.RequestException) as error:
            raise EngineUnusable(f"no Docker at {self._config.socket}: {error}") from error
        missing = [
            name for name in ("MemoryLimit", "PidsLimit", "CpuCfsQuota") if not info.get(name)
        ]
        if missing:
            raise EngineUnusable(f"the kernel or Docker does not enforce {', '.join(missing)}")
        if info.get("CgroupDriver") != "cgroupfs":
            # Metering finds a container's processes by its cgroup; systemd names those differently.
            raise EngineUnusable("Docker must run with --exec-opt native.cgroupdriver=cgroupfs")
        if any(
            "containerd.snapshotter" in str(value) for _, value in info.get("DriverStatus") or ()
        ):
            # There an image's id is not its config's digest, so nothing would tell us what was loaded.
            raise EngineUnusable(
                "Docker must keep images by itself, not with containerd's snapshotter"
            )
        if not any("seccomp" in option for option in info.get("SecurityOptions") or ()):
            raise EngineUnusable("Docker runs without seccomp")
        await self._images.tidy()
        await self._where()
        await self._call(partial(drop_own_networks, self._client, self._config))
        if self.disks is None:
            log.warning("nothing limits what containers write to disk: set [engine] disks")
        with closing(self._new_meter()) as meter:
            await Proof(self._client, self._config, meter).prove()

    async def watch(self) -> None:
        """Know the end of a run to the moment, and a port of the bridge before its container runs. Until cancelled."""
        _, isolation = await self._where()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(isolation.watch)
            while True:
                await self._meter.wait_end()

    async def found(self) -> dict[str, Found]:
        there = await self._call(partial(listed, self._client, self._config))
        running = {
            pubkey: cid for pubkey, (cid, have) in there.items() if have.live is Live.RUNNING
        }
        self._meter.expect(running)
        return {pubkey: have for pubkey, (_, have) in there.items()}

    async def start(self, spec: ContainerSpec) -> CannotStart | None:
        problem = await self._start(spec)
        if problem is not None:
            log.warning(
                "a container does not start",
                pubkey=spec.pubkey,
                reason=problem.reason,
                permanent=problem.permanent,
            )
        return problem

    async def _start(self, spec: ContainerSpec) -> CannotStart | None:
        waited_s = 0
        try:
            image = await self._images.get(spec)
            if isinstance(image, CannotStart):
                return image
            waited_s = image.waited_s
            where = await self._where()
            async with self._starts:
                work = partial(self._create_and_start, spec, image.image_id, *where)
                container_id = await self._call(work)
        except ENGINE_FAULTS as error:
            return replace(await self._cannot_start(spec, error), waited_s=waited_s)
        self._meter.expect_one(spec.pubkey, container_id)
        return None

    async def _where(self) -> tuple[Bridge, Isolation]:
        """The bridge that containers are put on. Raises `EngineUnusable`."""
        async with self._finding:
            if self._place is None:
                self._place = await self._call(self._find_place)
            return self._place

    async def _cannot_start(self, spec: ContainerSpec, error: Exception) -> CannotStart:
        reason = str(getattr(error, "explanation", None) or error)[:300]
        try:
            # 400: a configuration that this image makes impossible.
            permanent = isinstance(error, APIError) and (
                error.status_code == 400
                or await self._call(partial(self._has_no_program, spec.pubkey))
            )
            if permanent:
                await self._images.drop(spec.image)
        except ENGINE_FAULTS as gone:
            return CannotStart(f"{reason}; {gone}"[:300], permanent=False)
        return CannotStart(reason, permanent)

    def progress(self, pubkey: str) -> str | None:
        return self._images.progress(pubkey)

    async def halt(self, pubkey: str, grace_s: int) -> None:
        await self._call(partial(self._halt, pubkey, grace_s))
        self._meter.expect_one(pubkey, None)

    async def remove(self, pubkey: str, *, keep_volumes: bool) -> None:
        left = await self._call(partial(self._remove, pubkey, keep_volumes=keep_volumes))
        if left is not None and left[0]:
            image, ran = left
            is_over = not ran and not keep_volumes
            await (self._images.drop(image) if is_over else self._images.used(image))
        self._meter.expect_one(pubkey, None)

    async def drop_disks_but(self, pubkeys: Sequence[str]) -> None:
        """Disks of containers that are no more."""
        if self.disks is not None:
            names = [container_name(pubkey) for pubkey in pubkeys]
            if dropped := await self._call(partial(self.disks.drop_all_but, names)):
                log.info("disks dropped", containers=dropped)

    async def standing(self) -> dict[str, str]:
        """Containers of ours that run now: name → id."""
        there = await self._call(partial(listed, self._client, self._config))
        return {
            container_name(pubkey): cid
            for pubkey, (cid, have) in there.items()
            if have.live is Live.RUNNING
        }

    async def logs(self, pubkey: str, lines: int) -> str:
        return await self._call(partial(self._logs, pubkey, lines))

    async def addresses(self) -> dict[str, str]:
        return await self._call(partial(addresses, self._client, self._config))

    async def exit_reason(self, pubkey: str) -> str:
        return await self._call(partial(self._exit_reason, pubkey))

    def runs(self) -> dict[str, Run]:
        return self._meter.runs()

    def unmetered(self) -> frozenset[str]:
        return self._meter.unmetered()

    def ended(self) -> list[Ended]:
        return self._meter.ended()

    def forget_ended(self, ended: Ended) -> None:
        self._meter.forget_ended(ended)

    def close(self) -> None:
        self._images.close()
        self._meter.close()
        if self._place is not None:
            self._place[1].close()
        if "_client" in self.__dict__:
            self._client.close()

    async def _call(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._calls)

    # -- in worker threads --------------------------------------------------------------------------

    def _find_place(self) -> tuple[Bridge, Isolation]:
        bridge = find_bridge(self._client, self._config)
        return bridge, Isolation(self._config.socket, bridge.device)

    def _create_and_start(
        self, spec: ContainerSpec, image_id: str, bridge: Bridge, isolation: Isolation
    ) -> str:
        api, name = self._client.api, container_name(spec.pubkey)
        try:
            container_id = str(self._create(spec, image_id, bridge)["Id"])
        except APIError as error:
            if error.status_code != 409:
                raise
            # It is there already: stopped, or made before a crash.
            container_id = str(api.inspect_container(name)["Id"])
        if self.disks is not None:
            self._put_on_disks(self.disks, spec, container_id)
        api.start(container_id)
        try:
            isolation.isolate_all()
        except OSError:
            api.kill(container_id)
            raise
        return container_id

    def _has_no_program(self, pubkey: str) -> bool:
        """Whether the engine could not execute what the image names, by its own exit codes."""
        try:
            state = self._client.containers.get(container_name(pubkey)).attrs["State"]
        except NotFound:
            return False
        failed_to_start = bool(state.get("Error"))
        return failed_to_start and state.get("ExitCode") in (NOT_EXECUTABLE, NOT_THERE)

    def _create(self, spec: ContainerSpec, image_id: str, bridge: Bridge) -> dict[str, Any]:
        api, name, labels = (
            self._client.api,
            container_name(spec.pubkey),
            self._config.labels(spec.pubkey),
        )
        volumes = {f"{name}-{index}": path for index, path in enumerate(spec.volumes)}
        for index, volume in enumerate(volumes):
            options = self._volume_options(spec, index)
            self._client.volumes.create(volume, labels=labels, driver_opts=options)
        host = self._config.publish_host
        made: dict[str, Any] = api.create_container(
            image_id,
            name=name,
            hostname=name,
            environment=dict(spec.env),
            labels=labels | {GENERATION: str(spec.generation), IMAGE: spec.image},
            healthcheck=NO_HEALTH_CHECK,
            ports=[tuple(port.container_port.split("/", 1)) for port in spec.ports],
            host_config=api.create_host_config(
                network_mode=BRIDGE,
                extra_hosts={HOST_NAME: bridge.gateway},
                port_bindings={port.container_port: (host, port.host_port) for port in spec.ports},
                binds={name: {"bind": path, "mode": "rw"} for name, path in volumes.items()},
                **walls(spec.limits),
            ),
        )
        return made

    def _volume_options(self, spec: ContainerSpec, index: int) -> dict[str, str]:
        """Bound to our folder by the driver, which fills it from the image and gives it the image's owner."""
        if self.disks is None:
            return {}
        name, size = container_name(spec.pubkey), spec.limits.volume_bytes
        with _disk_faults():
            folder = self.disks.volume(name, index, size)
        return {"type": "none", "o": "bind", "device": str(folder)}

    def _put_on_disks(self, disks: Disks, spec: ContainerSpec, container_id: str) -> None:
        name, limits = container_name(spec.pubkey), spec.limits
        driver = self._client.api.inspect_container(container_id)["GraphDriver"]
        if driver["Name"] != "overlay2":
            raise DockerException(f"disks need Docker's overlay2, not {driver['Name']}")
        with _disk_faults():
            for index, _ in enumerate(spec.volumes):
                disks.volume(name, index, limits.volume_bytes)
            disks.layer(name, Path(driver["Data"]["UpperDir"]).parent, limits.disk_bytes)

    def _halt(self, pubkey: str, grace_s: int) -> None:
        try:
            self._client.containers.get(container_name(pubkey)).stop(timeout=grace_s)
        except NotFound:
            pass  # nothing to halt is as good as halted

    def _remove(self, pubkey: str, *, keep_volumes: bool) -> tuple[str, bool] | None:
        """The image of the container that went, and whether that ever ran."""
        left = None
        try:
            container = self._client.containers.get(container_name(pubkey))
            if keep_volumes:
                self._kept_logs.keep(pubkey, self._raw_logs(container, MAX_LOG_LINES))
            container.remove(force=True, v=False)
            ran = not container.attrs["State"]["StartedAt"].startswith("0001-")
            left = (container.labels.get(IMAGE, ""), ran)
        except NotFound:
            pass
        if self.disks is not None:
            self.disks.drop_layer(container_name(pubkey))
        if keep_volumes:
            return left
        self._kept_logs.forget(pubkey)
        ours = {"label": [self._config.ours, f"{PUBKEY}={pubkey}"]}
        for volume in self._client.volumes.list(filters=ours):
            volume.remove(force=True)
        if self.disks is not None:
            self.disks.drop(container_name(pubkey))
        return left

    def _logs(self, pubkey: str, lines: int) -> str:
        """What it wrote, also before it was made anew."""
        try:
            now = self._raw_logs(self._client.containers.get(container_name(pubkey)), lines)
        except NotFound:
            now = b""
        whole = (self._kept_logs.kept(pubkey) + now)[-MAX_LOG_BYTES:]
        return "".join(whole.decode(errors="replace").splitlines(keepends=True)[-lines:])

    @staticmethod
    def _raw_logs(container: Any, lines: int) -> bytes:
        try:
            raw: bytes = container.logs(tail=lines, timestamps=True)
        except APIError as error:
            # 409: it is being removed, or could not be removed: dockerd shows nothing of it any more.
            if error.status_code != 409:
                raise
            return b""
        return raw[-MAX_LOG_BYTES:]

    def _exit_reason(self, pubkey: str) -> str:
        try:
            state = self._client.containers.get(container_name(pubkey)).attrs["State"]
        except NotFound:
            return "the container is gone"
        if state.get("OOMKilled"):
            return "it ran out of memory"
        return f"it does not stay up: exit code {state.get('ExitCode')}"


@contextmanager
def _disk_faults() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DockerException(f"no disk can be made for it now: {error.strerror}") from error
