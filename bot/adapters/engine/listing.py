"""What of ours there is at the engine, and where it can be reached. In worker threads."""

import docker

from bot.adapters.engine.names import GENERATION, PUBKEY, DockerConfig
from handlers.domain.plan import Found, Live

_LIVE = {"running": Live.RUNNING, "created": Live.CREATED, "paused": Live.RUNNING}


def listed(client: docker.DockerClient, config: DockerConfig) -> dict[str, tuple[str, Found]]:
    """By pubkey: the container's id and what it does, or an empty id where only volumes remain."""
    ours, there = {"label": config.ours}, {}
    for entry in client.api.containers(all=True, filters=ours):
        labels = entry["Labels"]
        found = Found(_LIVE.get(entry["State"], Live.EXITED), int(labels.get(GENERATION, 0)))
        if PUBKEY in labels:
            there[labels[PUBKEY]] = (entry["Id"], found)
    # What a crash left between a container and its volumes must be found again.
    for volume in client.volumes.list(filters=ours):
        pubkey = (volume.attrs.get("Labels") or {}).get(PUBKEY, "")
        if pubkey and pubkey not in there:
            there[pubkey] = ("", Found(Live.REMAINS, 0))
    return there


def addresses(client: docker.DockerClient, config: DockerConfig) -> dict[str, str]:
    """Which container has which address now: ``{address: pubkey}``."""
    ours, found = {"label": config.ours, "status": "running"}, {}
    for entry in client.api.containers(filters=ours):
        for network in entry["NetworkSettings"]["Networks"].values():
            if network.get("IPAddress") and PUBKEY in entry["Labels"]:
                found[network["IPAddress"]] = entry["Labels"][PUBKEY]
    return found
