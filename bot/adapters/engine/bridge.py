"""The one bridge that all containers are on: Docker's default one, because it alone asks no resolver of dockerd's.

A container cannot reach its neighbours there: IP is dropped between ports (``icc`` off, which must be in
daemon.json and is tried out at start by `bot.adapters.engine.proof`), and `bot.adapters.engine.isolation` keeps
everything below IP apart as well. In worker threads.
"""

from dataclasses import dataclass
from ipaddress import IPv4Network

import docker
from docker.errors import APIError, NotFound

from bot.adapters.engine.names import DockerConfig, EngineUnusable

NAME = "bridge"
# A Linux bridge has no more ports. And a container that looks for every address of a larger network would fill the
# neighbour table, which all network namespaces share.
MOST_ADDRESSES = 1_024
_OPTION = "com.docker.network.bridge."


@dataclass(frozen=True)
class Bridge:
    """``device``: its name in the engine's network namespace; ``gateway``: our end of it."""

    device: str
    gateway: str
    subnet: IPv4Network


def find_bridge(client: docker.DockerClient, config: DockerConfig) -> Bridge:
    """Raises `EngineUnusable` when it is not configured as it must be."""
    try:
        attrs = client.networks.get(NAME).attrs
    except NotFound as error:
        raise EngineUnusable("Docker has no default bridge, and containers need it") from error
    options = attrs["Options"]
    if options.get(f"{_OPTION}enable_icc") != "false":
        raise EngineUnusable('Docker\'s daemon.json must say "icc": false')
    masquerade = options.get(f"{_OPTION}enable_ip_masquerade") == "true"
    if masquerade is not config.masquerade:
        said = str(config.masquerade).lower()
        raise EngineUnusable(
            f'[engine] masquerade is {said}: Docker\'s daemon.json must say "ip-masq": {said}'
        )
    if attrs.get("EnableIPv6"):
        raise EngineUnusable("Docker's default bridge must not have IPv6")
    pool = attrs["IPAM"]["Config"][0]
    subnet = IPv4Network(pool["Subnet"])
    if subnet.num_addresses > MOST_ADDRESSES:
        raise EngineUnusable(
            f"Docker's default bridge has {subnet}: its daemon.json must give it a smaller network,"
            ' such as "bip": "10.201.0.1/22"'
        )
    return Bridge(options[f"{_OPTION}name"], pool.get("Gateway") or str(subnet[1]), subnet)


def drop_own_networks(client: docker.DockerClient, config: DockerConfig) -> None:
    """Those that earlier versions made, one for each container; one that is in use leaves another time."""
    for network in client.networks.list(filters={"label": config.ours}):
        try:
            network.remove()
        except APIError as error:
            if error.status_code not in (403, 404):
                raise
