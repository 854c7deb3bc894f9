"""What is promised is tried out at every start, with containers of our own: metering, limits, and walls between neighbours.

A wrong ``cgroup_parent`` shows nowhere else: everything runs, and nothing is ever charged. The bridge's rules are
the engine's, the kernel's and the operator's together, so they too are believed only when they are seen.
"""

from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
import trio
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from bot.adapters.engine import cgroup, probe
from bot.adapters.engine.bridge import NAME
from bot.adapters.engine.names import OWNER, DockerConfig, EngineUnusable
from bot.adapters.engine.walls import NO_HEALTH_CHECK, walls
from bot.adapters.proc_meter import ProcMeter
from handlers.domain.limits import Limits, UnitSize, limits_for

T = TypeVar("T")
_KNOCKED_S = 30
_LIMITS = limits_for(1, UnitSize())
_LOOKS, _STEP_S = 100, 0.05


class Proof:
    """Raises `EngineUnusable` by what does not hold. Leaves nothing behind, not even of one that was killed."""

    def __init__(
        self,
        client: docker.DockerClient,
        config: DockerConfig,
        meter: ProcMeter,
    ) -> None:
        self._client, self._config, self._meter = client, config, meter
        self._names = [f"enclaved-try-{what}-{config.owner[:24]}" for what in ("pause", "knock")]

    async def prove(self) -> None:
        try:
            await self._call(partial(self._clean_up))
            await self._prove()
        except (DockerException, requests.exceptions.RequestException) as error:
            said = getattr(error, "explanation", None) or error
            raise EngineUnusable(
                f"a container that is started for a try does not run: {said}"
            ) from error
        finally:
            with trio.CancelScope(shield=True):
                await self._call(partial(self._clean_up_quietly))

    async def _prove(self) -> None:
        pausing, knocking = self._names
        container_id = await self._call(partial(self._run, pausing, probe.pause()))
        await self._prove_metered(container_id)
        await self._call(partial(_prove_limits, self._config.cgroup_parent, container_id))
        address = await self._call(partial(self._address, pausing))
        await self._call(partial(self._run, knocking, probe.knock(address)))
        ended = await self._call(partial(self._wait, knocking))
        if ended == probe.REACHED:
            raise EngineUnusable(
                "containers reach each other over Docker's bridge: its daemon.json must say"
                ' "icc": false, and net.bridge.bridge-nf-call-iptables must be 1'
            )
        if ended != probe.SILENCE:
            raise EngineUnusable(f"whether containers reach each other is not known: {ended}")

    async def _prove_metered(self, container_id: str) -> None:
        self._meter.expect({"": container_id})
        for _ in range(_LOOKS):
            if self._meter.runs():
                return
            await trio.sleep(_STEP_S)
        raise EngineUnusable(
            "a container that is started for a try cannot be metered: no process of it is found under"
            f" cgroup_parent {self._config.cgroup_parent!r}; in [engine] it must be as dockerd's own,"
            " and the engine must be on this machine"
        )

    async def _call(self, work: "partial[T]") -> T:
        return await trio.to_thread.run_sync(work)

    # -- in worker threads --------------------------------------------------------------------------

    def _run(self, name: str, program: bytes) -> str:
        image = f"{name}:latest"
        api: Any = self._client.api
        api.load_image(probe.archive(program, image))
        host = api.create_host_config(network_mode=NAME, **walls(_LIMITS))
        made = api.create_container(
            image,
            name=name,
            labels={OWNER: self._config.owner},
            healthcheck=NO_HEALTH_CHECK,
            host_config=host,
        )
        api.start(made["Id"])
        return str(made["Id"])

    def _address(self, name: str) -> IPv4Address:
        networks = self._client.containers.get(name).attrs["NetworkSettings"]["Networks"]
        return IPv4Address(next(iter(networks.values()))["IPAddress"])

    def _wait(self, name: str) -> int:
        return int(self._client.api.wait(name, timeout=_KNOCKED_S)["StatusCode"])

    def _clean_up(self) -> None:
        for name in self._names:
            for remove in (
                partial(self._client.api.remove_container, name, force=True),
                partial(self._client.api.remove_image, f"{name}:latest"),
            ):
                try:
                    remove()
                except (NotFound, ImageNotFound):
                    pass

    def _clean_up_quietly(self) -> None:
        """What cannot be removed now is removed at the next start; why it failed is told already."""
        try:
            self._clean_up()
        except (APIError, DockerException, requests.exceptions.RequestException):
            pass


def _prove_limits(parent: str, container_id: str, limits: Limits = _LIMITS) -> None:
    have = cgroup.limits_of(parent, container_id)
    wrong = [
        word
        for word, holds in (
            # In whole pages.
            ("memory", 0 < (have.memory_bytes or 0) <= limits.memory_bytes),
            ("pids", have.pids == limits.pids),
            ("CPU", have.cpu_quota_us == limits.cpu_quota_us),
            ("nofile", _most_files(parent, container_id) == limits.nofile),
        )
        if not holds
    ]
    if wrong:
        raise EngineUnusable(
            f"limits of a container that is started for a try are not in force: {', '.join(wrong)}"
        )


def _most_files(parent: str, container_id: str) -> int | None:
    """Open files that its youngest process may have: the first one may still be the runtime's."""
    for pid in reversed(cgroup.pids(parent, container_id)):
        try:
            text = Path(f"/proc/{pid}/limits").read_text()
        except OSError:
            continue
        return int(text.partition("Max open files")[2].split()[1])
    return None
