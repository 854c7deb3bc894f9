"""The engine on Docker: the SDK in worker threads, at most four starts at once.

Everything of ours carries the label `OWNER`; nothing else is ever touched. Names are derived from the
container's pubkey, so every step can be repeated after a crash and finds what it made before.

What a container may do is in `_host_config`: limits from its units, every capability dropped but
those in `CAPABILITIES`, no new privileges, our own seccomp profile, one bridge network of its own, a
bounded log, and a volume of ours for every VOLUME that the image declares.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
import trio
import urllib3
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import LogConfig

from bot.adapters import seccomp
from bot.adapters.kept_logs import KeptLogs
from bot.adapters.proc_meter import ProcMeter
from handlers.domain.limits import CPU_PERIOD_US, image_fits
from handlers.domain.meter import Ended, Run
from handlers.domain.plan import Found, Live
from handlers.ports import CannotStart, Clock, ContainerSpec

T = TypeVar("T")
OWNER = "enclaved.instance"
PUBKEY, GENERATION = "enclaved.pubkey", "enclaved.generation"
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
MAX_STARTS, MAX_PULLS = 4, 8
HOST_NAME = "enclaved"
PULL_S = 600
MAX_LOG_BYTES, MAX_LOG_LINES = 1_000_000, 1_000
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
    credentials: Mapping[str, str] | None = field(default=None, repr=False)


class EngineUnusable(Exception):
    """The engine cannot enforce what we promise; refusing to run is the only answer."""


class DockerEngine:
    """`handlers.ports.Engine`."""

    def __init__(self, config: DockerConfig, boot_id: str, clock: Clock) -> None:
        self._config = config
        self._meter = ProcMeter(config.cgroup_parent, boot_id, clock)
        self._starts = trio.CapacityLimiter(MAX_STARTS)
        self._pulls = trio.CapacityLimiter(MAX_PULLS)
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
        if not any("seccomp" in option for option in info.get("SecurityOptions") or ()):
            raise EngineUnusable("Docker runs without seccomp")

    async def found(self) -> dict[str, Found]:
        listed = await self._call(self._list)
        running = {
            pubkey: cid for pubkey, (cid, have) in listed.items() if have.live is Live.RUNNING
        }
        self._meter.expect(running)
        return {pubkey: have for pubkey, (_, have) in listed.items()}

    async def start(self, spec: ContainerSpec) -> CannotStart | None:
        try:
            await self._pull_in_time(spec)
            async with self._starts:
                container_id = await self._call(partial(self._start, spec))
        except (
            DockerException,
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
        ) as error:
            return _cannot_start(error)
        except trio.TooSlowError:
            return CannotStart(f"the image cannot be pulled within {PULL_S} s", permanent=True)
        except _Unfit as unfit:
            return CannotStart(str(unfit), permanent=True)
        self._meter.expect_one(spec.pubkey, container_id)
        return None

    async def _pull_in_time(self, spec: ContainerSpec) -> None:
        """Pulls have places of their own: a registry that drips must not keep others from starting."""
        with trio.fail_after(PULL_S):
            await trio.to_thread.run_sync(
                self._pull, spec, limiter=self._pulls, abandon_on_cancel=True, thread_name="pull"
            )

    async def halt(self, pubkey: str, grace_s: int) -> None:
        await self._call(partial(self._halt, pubkey, grace_s))
        self._meter.expect_one(pubkey, None)

    async def remove(self, pubkey: str, *, keep_volumes: bool) -> None:
        await self._call(partial(self._remove, pubkey, keep_volumes=keep_volumes))
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

    def _start(self, spec: ContainerSpec) -> str:
        try:
            container = self._client.containers.get(_name(spec.pubkey))
        except NotFound:
            container = self._create(spec)
        container.start()
        return str(container.id)

    def _pull(self, spec: ContainerSpec) -> None:
        try:
            image = self._client.images.get(spec.image)
        except ImageNotFound:
            host = spec.image.partition("/")[0]
            user, _, password = (self._config.credentials or {}).get(host, "").partition(":")
            auth = {"username": user, "password": password} if user else None
            image = self._client.images.pull(spec.image, auth_config=auth)
        if not image_fits(int(image.attrs["Size"]), spec.limits):
            self._drop_image(spec.image)
            raise _Unfit("the image is too large for its disk; take more units")
        undeclared = (image.attrs["Config"].get("Volumes") or {}).keys() - set(spec.volumes)
        if undeclared:
            # They would become anonymous volumes without a limit.
            raise _Unfit("the image declares other volumes than its registry told")

    def _drop_image(self, image: str) -> None:
        """An image that nobody runs only fills the disk; one that somebody runs stays by itself."""
        try:
            self._client.images.remove(image)
        except (ImageNotFound, APIError):
            pass

    def _create(self, spec: ContainerSpec) -> Any:
        gateway = self._network(spec.pubkey)
        labels = self._labels(spec.pubkey)
        for index in range(len(spec.volumes)):
            self._client.volumes.create(f"{_name(spec.pubkey)}-{index}", labels=labels)
        return self._client.containers.create(
            spec.image,
            name=_name(spec.pubkey),
            hostname=_name(spec.pubkey),
            environment=dict(spec.env),
            labels=labels | {GENERATION: str(spec.generation)},
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

    def _remove(self, pubkey: str, *, keep_volumes: bool) -> None:
        image = None
        try:
            container = self._client.containers.get(_name(pubkey))
            image = container.attrs["Config"]["Image"]
            if keep_volumes:
                self._kept_logs.keep(pubkey, self._raw_logs(container, MAX_LOG_LINES))
            container.remove(force=True, v=False)
        except NotFound:
            pass
        if keep_volumes:
            return
        self._kept_logs.forget(pubkey)
        if image is not None:
            self._drop_image(image)
        ours = {"label": [f"{OWNER}={self._config.owner}", f"{PUBKEY}={pubkey}"]}
        for volume in self._client.volumes.list(filters=ours):
            volume.remove(force=True)
        for network in self._client.networks.list(filters=ours):
            network.remove()

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
        raw: bytes = container.logs(tail=lines, timestamps=True)
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


class _Unfit(Exception):
    """The image is not what was quoted."""


def _name(pubkey: str) -> str:
    return f"enclaved-{pubkey[:24]}"


def _cannot_start(error: Exception) -> CannotStart:
    reason = str(getattr(error, "explanation", None) or error)[:300]
    # 404: no such image. 400: a configuration that this image makes impossible. The rest may pass.
    permanent = isinstance(error, APIError) and error.status_code in (400, 404)
    # The engine reports an executable that does not exist as an error of its own.
    permanent |= "OCI runtime create failed" in reason or "executable file not found" in reason
    return CannotStart(reason, permanent)
