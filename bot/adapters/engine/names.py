"""How what is ours is known at the engine. Everything carries the label `OWNER`; nothing else is ever touched.

Names are derived from the container's pubkey, so every step can be repeated after a crash and finds what it made
before.
"""

from dataclasses import dataclass
from pathlib import Path

OWNER = "enclaved.instance"
PUBKEY, GENERATION, IMAGE = "enclaved.pubkey", "enclaved.generation", "enclaved.image"
# The name under which a container finds us: our end of its bridge.
HOST_NAME = "enclaved"


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
    # Where containers' disks lie, each an image of a fixed size; None: they are the engine's own folders, without limit.
    disks: Path | None = None

    @property
    def ours(self) -> str:
        """The label of everything of this instance, as a filter has it."""
        return f"{OWNER}={self.owner}"

    def labels(self, pubkey: str) -> dict[str, str]:
        return {OWNER: self.owner, PUBKEY: pubkey}


class EngineUnusable(Exception):
    """The engine cannot enforce what we promise; refusing to run is the only answer."""


def container_name(pubkey: str) -> str:
    return f"enclaved-{pubkey[:24]}"
