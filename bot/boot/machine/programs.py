"""What runs in an enclave, in which order, and by what each is known to be there. A value, made from the configuration."""

import sys
from pathlib import Path

import trio

from bot.adapters.engine.cgroup import joining
from bot.boot.machine.engine_files import EnginePaths
from bot.boot.machine.probes import docker_answers, socket_answers
from bot.boot.steps import Step
from bot.boot.supervisor import Program
from bot.boot.unlock import EXIT_OVERTAKEN
from bot.config import MachineConfig
from netstack.config import EnclaveConfig
from netstack.control import Refused, call

NETWORK, CONTAINERD, DOCKERD, SERVER = "netstack", "containerd", "dockerd", "server"
# The last checkpoint is made meanwhile.
_SERVER_STOP_S = 60
# Far more than they take; one that hangs is started again.
_READY_S = 120


def engine_paths(config: MachineConfig) -> EnginePaths:
    return EnginePaths(config.boot.run_dir, config.boot.data_root, Path(config.engine.socket))


def network(config: Path, inside: EnclaveConfig) -> Program:
    """Ready when packets flow."""

    async def ready() -> bool:
        try:
            status = await call(inside.local, "get_status")
        except (OSError, Refused, trio.TooSlowError):
            return False
        return isinstance(status, dict) and status.get("up") is True

    command = [sys.executable, "-m", "netstack", "enclave", "--config", str(config)]
    return Program(NETWORK, command, ready=ready, ready_s=_READY_S, outlives=True)


def containerd(paths: EnginePaths, group: Path) -> Program:
    socket = paths.containerd_socket
    command = [*joining(group), *paths.containerd_command()]
    return Program(
        CONTAINERD,
        command,
        ready=lambda: socket_answers(socket),
        ready_s=_READY_S,
        outlives=True,
    )


def dockerd(paths: EnginePaths, group: Path) -> Program:
    command = [*joining(group), *paths.dockerd_command()]
    return Program(
        DOCKERD,
        command,
        after=(CONTAINERD,),
        ready=lambda: docker_answers(paths.socket),
        ready_s=_READY_S,
        outlives=True,
    )


def server(config_path: Path, config: MachineConfig) -> Program:
    """Ready when it says so itself."""
    status = config.boot.status

    async def ready() -> bool:
        try:
            told = await call(status, "status")
        except (OSError, Refused, trio.TooSlowError):
            return False
        return isinstance(told, dict) and told.get("step") == Step.READY

    command = [sys.executable, "-m", "bot", "run", "--config", str(config_path)]
    return Program(
        SERVER,
        command,
        # It ends before the network does: its last checkpoint is anchored over it.
        after=(DOCKERD,) if config.boot.network is None else (DOCKERD, NETWORK),
        ready=ready,
        stop_s=_SERVER_STOP_S,
        # However long it takes to be ready: escrow, and who must be asked there, may be away.
        over_code=EXIT_OVERTAKEN,
        outlives=True,
    )
