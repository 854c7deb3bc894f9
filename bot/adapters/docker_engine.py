"""The engine on Docker: the SDK in worker threads, at most four starts at once.

Everything of ours carries the label `OWNER`; nothing else is ever touched. Names are derived from the
container's pubkey, so every step can be repeated after a crash and finds what it made before.

What a container may do is in `_host_config`: limits from its units, every capability dropped but
those in `CAPABILITIES`, no new privileges, our own seccomp profile, one bridge network of its own, a
bounded log, and a volume of ours for every VOLUME that the image declares.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
import trio
from docker.errors import APIError, DockerException, NotFound
from docker.types import LogConfig

from bot.adapters import seccomp
from bot.adapters.image_store import ENGINE_FAULTS, ImageStore
from bot.adapters.kept_logs import KeptLogs
from bot.adapters.proc_meter import ProcMeter
from handlers.domain.limits import CPU_PERIOD_US
from handlers.domain.meter import Ended, Run
from handlers.domain.plan import Found, Live
from handlers.ports import CannotStart, Clock, ContainerSpec

T = TypeVar("T")
OWNER = "enclaved.instance"
PUBKEY, GENERATION, IMAGE = "enclaved.pubkey", "enclaved.generation", "enclaved.image"
# What ordinary images need to drop privileges and to own their files. No NET_RAW, MKNOD, SYS_CHROOT,
# SETFCAP, AUDIT_WRITE, which Docker would give.
CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETPCAP",
    "SETUID",
)
MAX_STARTS = 4
HOST_NAME = "enclaved"
MAX_LOG_BYTES, MAX_LOG_LINES = 1_000_000, 1_000
# How the engine says that a program cannot be executed, or is not there: as a shell does.
NOT_EXECUTABLE, NOT_THERE = 126, 127
_LIVE = {
    "running": Live.RUNNING,
    "created": Live.CREATED,
    "paused": Live.RUNNING,
}


@dataclass(frozen=True)
class DockerConfig:
    """``owner`` tells our containers from another instance's on the same engine."""

    socket: str
    owner: str
    cgroup_parent: str = "/docker"
    # The address of this machine's network namespace that published ports bind to.
    publish_host: str = "0.0.0.0"  # noqa: S104 - tenants' ports are meant to be reached
    masquerade: bool = True
    # Where logs of containers that are made anew are kept; None: nowhere.
    kept_logs: Path | None = None


class EngineUnusable(Exception):
    """The engine cannot enforce what we promise; refusing to run is the only answer."""


class DockerEngine:
    """`handlers.ports.Engine`."""

    def __init__(
        self, config: DockerConfig, images: ImageStore, boot_id: str, clock: Clock
    ) -> None:
        self._config = config
        self._images = images
        self._meter = ProcMeter(config.cgroup_parent, boot_id, clock)
        self._starts = trio.CapacityLimiter(MAX_STARTS)
        self._calls = trio.CapacityLimiter(8)
        self._seccomp = seccomp.profile()
        self._kept_logs = KeptLogs(config.kept_logs)

    @cached_property
    def _client(self) -> docker.DockerClient:
        # Made at the first use, in a worker thread: the SDK asks the engine for its version at once.
        return docker.DockerClient(
            base_url=f"unix://{self._config.socket}", timeout=120, max_pool_size=16
        )

    async def check(self) -> None:
        """Raise `EngineUnusable` when memory, pids or CPU limits do not hold on this machine."""
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

    async def found(self) -> dict[str, Found]:
        listed = await self._call(self._list)
        running = {
            pubkey: cid for pubkey, (cid, have) in listed.items() if have.live is Live.RUNNING
        }
        self._meter.expect(running)
        return {pubkey: have for pubkey, (_, have) in listed.items()}

    async def start(self, spec: ContainerSpec) -> CannotStart | None:
        waited_s = 0
        try:
            container_id = await self._start_existing(spec)
            if container_id is None:
                image = await self._images.get(spec)
                if isinstance(image, CannotStart):
                    return image
                waited_s = image.waited_s
                container_id = await self._start_new(spec, image.image_id)
        except ENGINE_FAULTS as error:
            return replace(await self._cannot_start(spec, error), waited_s=waited_s)
        self._meter.expect_one(spec.pubkey, container_id)
        return None

    async def _start_existing(self, spec: ContainerSpec) -> str | None:
        async with self._starts:
            return await self._call(partial(self._start_if_there, spec))

    async def _start_new(self, spec: ContainerSpec, image_id: str) -> str:
        async with self._starts:
            return await self._call(partial(self._create_and_start, spec, image_id))

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

    async def logs(self, pubkey: str, lines: int) -> str:
        return await self._call(partial(self._logs, pubkey, lines))

    async def addresses(self) -> dict[str, str]:
        return await self._call(self._addresses)

    async def exit_reason(self, pubkey: str) -> str:
        return await self._call(partial(self._exit_reason, pubkey))

    def runs(self) -> dict[str, Run]:
        return self._meter.runs()

    def ended(self) -> list[Ended]:
        return self._meter.ended()

    def forget_ended(self, ended: Ended) -> None:
        self._meter.forget_ended(ended)

    def close(self) -> None:
        self._images.close()
        if "_client" in self.__dict__:
            self._client.close()

    async def _call(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._calls)

    # -- in worker threads --------------------------------------------------------------------------

    def _list(self) -> dict[str, tuple[str, Found]]:
        ours = {"label": f"{OWNER}={self._config.owner}"}
        listed = {}
        for entry in self._client.api.containers(all=True, filters=ours):
            labels = entry["Labels"]
            live = _LIVE.get(entry["State"], Live.EXITED)
            found = Found(live, int(labels.get(GENERATION, 0)))
            listed[labels.get(PUBKEY, entry["Id"])] = (entry["Id"], found)
        # What a crash left between a container and its volumes and network must be found again.
        for kept in [
            *self._client.volumes.list(filters=ours),
            *self._client.networks.list(filters=ours),
        ]:
            pubkey = (kept.attrs.get("Labels") or {}).get(PUBKEY, "")
            if pubkey and pubkey not in listed:
                listed[pubkey] = ("", Found(Live.REMAINS, 0))
        return listed

    def _addresses(self) -> dict[str, str]:
        ours = {"label": f"{OWNER}={self._config.owner}", "status": "running"}
        found = {}
        for entry in self._client.api.containers(filters=ours):
            pubkey = entry["Labels"].get(PUBKEY, "")
            network = entry["NetworkSettings"]["Networks"].get(_name(pubkey))
            if network is not None and network.get("IPAddress"):
                found[network["IPAddress"]] = pubkey
        return found

    def _start_if_there(self, spec: ContainerSpec) -> str | None:
        try:
            container = self._client.containers.get(_name(spec.pubkey))
        except NotFound:
            return None
        container.start()
        return str(container.id)

    def _create_and_start(self, spec: ContainerSpec, image_id: str) -> str:
        container = self._create(spec, image_id)
        container.start()
        return str(container.id)

    def _has_no_program(self, pubkey: str) -> bool:
        """Whether the engine could not execute what the image names, by its own exit codes."""
        try:
            state = self._client.containers.get(_name(pubkey)).attrs["State"]
        except NotFound:
            return False
        failed_to_start = bool(state.get("Error"))
        return failed_to_start and state.get("ExitCode") in (NOT_EXECUTABLE, NOT_THERE)

    def _create(self, spec: ContainerSpec, image_id: str) -> Any:
        gateway = self._network(spec.pubkey)
        labels = self._labels(spec.pubkey)
        for index in range(len(spec.volumes)):
            self._client.volumes.create(f"{_name(spec.pubkey)}-{index}", labels=labels)
        return self._client.containers.create(
            image_id,
            name=_name(spec.pubkey),
            hostname=_name(spec.pubkey),
            environment=dict(spec.env),
            labels=labels | {GENERATION: str(spec.generation), IMAGE: spec.image},
            detach=True,
            # The name under which a container finds us: our end of its own bridge.
            extra_hosts={HOST_NAME: gateway},
            **self._host_config(spec),
        )

    def _host_config(self, spec: ContainerSpec) -> dict[str, Any]:
        limits = spec.limits
        host = self._config.publish_host
        return {
            "cpu_period": CPU_PERIOD_US,
            "cpu_quota": limits.cpu_quota_us,
            "mem_limit": limits.memory_bytes,
            "memswap_limit": limits.memory_bytes,  # equal: no swap beyond memory
            "pids_limit": limits.pids,
            "shm_size": min(limits.memory_bytes, 64_000_000),
            # An image's own health check would make dockerd work without end, at nobody's cost.
            "healthcheck": {"test": ["NONE"]},
            "init": True,
            "cap_drop": ["ALL"],
            "cap_add": list(CAPABILITIES),
            "security_opt": ["no-new-privileges", f"seccomp={self._seccomp}"],
            "network": _name(spec.pubkey),
            "ports": {port.container_port: (host, port.host_port) for port in spec.ports},
            "volumes": {
                f"{_name(spec.pubkey)}-{index}": {"bind": path, "mode": "rw"}
                for index, path in enumerate(spec.volumes)
            },
            "log_config": LogConfig(type="local", config={"max-size": "1m", "max-file": "2"}),
            # When it is started again is `handlers.domain.trial`'s to say.
            "restart_policy": {"Name": "no"},
        }

    def _network(self, pubkey: str) -> str:
        """The container's own bridge; the address of our end of it."""
        try:
            network = self._client.networks.get(_name(pubkey))
        except NotFound:
            network = self._client.networks.create(
                _name(pubkey),
                driver="bridge",
                labels=self._labels(pubkey),
                options={
                    "com.docker.network.bridge.enable_icc": "false",
                    "com.docker.network.bridge.enable_ip_masquerade": str(
                        self._config.masquerade
                    ).lower(),
                },
            )
            network.reload()
        return str(network.attrs["IPAM"]["Config"][0]["Gateway"])

    def _halt(self, pubkey: str, grace_s: int) -> None:
        try:
            self._client.containers.get(_name(pubkey)).stop(timeout=grace_s)
        except NotFound:
            pass  # nothing to halt is as good as halted

    def _remove(self, pubkey: str, *, keep_volumes: bool) -> tuple[str, bool] | None:
        """The image of the container that went, and whether that ever ran."""
        left = None
        try:
            container = self._client.containers.get(_name(pubkey))
            if keep_volumes:
                self._kept_logs.keep(pubkey, self._raw_logs(container, MAX_LOG_LINES))
            container.remove(force=True, v=False)
            ran = not container.attrs["State"]["StartedAt"].startswith("0001-")
            left = (container.labels.get(IMAGE, ""), ran)
        except NotFound:
            pass
        if keep_volumes:
            return left
        self._kept_logs.forget(pubkey)
        ours = {"label": [f"{OWNER}={self._config.owner}", f"{PUBKEY}={pubkey}"]}
        for volume in self._client.volumes.list(filters=ours):
            volume.remove(force=True)
        for network in self._client.networks.list(filters=ours):
            network.remove()
        return left

    def _logs(self, pubkey: str, lines: int) -> str:
        """What it wrote, also before it was made anew."""
        try:
            now = self._raw_logs(self._client.containers.get(_name(pubkey)), lines)
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
            state = self._client.containers.get(_name(pubkey)).attrs["State"]
        except NotFound:
            return "the container is gone"
        if state.get("OOMKilled"):
            return "it ran out of memory"
        return f"it does not stay up: exit code {state.get('ExitCode')}"

    def _labels(self, pubkey: str) -> dict[str, str]:
        return {OWNER: self._config.owner, PUBKEY: pubkey}


def _name(pubkey: str) -> str:
    return f"enclaved-{pubkey[:24]}"
