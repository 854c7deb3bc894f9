"""What a container may do: limits from its units, few capabilities, no new privileges, our own seccomp profile."""

from functools import cache
from typing import Any

from docker.types import LogConfig, Ulimit

from bot.adapters import seccomp
from handlers.domain.limits import CPU_PERIOD_US, Limits

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
# An image's own health check would make dockerd work without end, at nobody's cost.
NO_HEALTH_CHECK = {"test": ["NONE"]}


def walls(limits: Limits) -> dict[str, Any]:
    """As arguments of the SDK's ``create_host_config``; the same for the container that is started for a try."""
    return {
        "cpu_period": CPU_PERIOD_US,
        "cpu_quota": limits.cpu_quota_us,
        "mem_limit": limits.memory_bytes,
        "memswap_limit": limits.memory_bytes,  # equal: no swap beyond memory
        "pids_limit": limits.pids,
        "ulimits": [Ulimit(name="nofile", soft=limits.nofile, hard=limits.nofile)],
        "shm_size": min(limits.memory_bytes, 64_000_000),
        "init": True,
        "cap_drop": ["ALL"],
        "cap_add": list(CAPABILITIES),
        "security_opt": ["no-new-privileges", f"seccomp={_profile()}"],
        "log_config": LogConfig(type="local", config={"max-size": "1m", "max-file": "2"}),
        # When it is started again is `handlers.domain.trial`'s to say.
        "restart_policy": {"Name": "no"},
    }


@cache
def _profile() -> str:
    return seccomp.profile()
