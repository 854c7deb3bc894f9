"""What the engine is asked to show before anything of a stranger's runs on it."""

import subprocess
from contextlib import contextmanager

import docker
import pytest

from bot.adapters.docker_engine import DockerConfig, EngineUnusable
from bot.adapters.engine.proof import Proof
from bot.adapters.proc_meter import ProcMeter
from bot.clock import SystemClock, boot_id
from nips.keys import SecretKey

pytestmark = [
    pytest.mark.dockerd,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def client(ground):
    made = docker.DockerClient(base_url=f"unix://{ground.socket}")
    before = _names(made)
    yield made
    assert before == _names(made), "nothing is left of what was tried"
    made.close()


def _names(client):
    return sorted(c.name for c in client.containers.list(all=True)), sorted(
        tag for image in client.images.list() for tag in image.tags
    )


def proof_on(ground, client, cgroup_parent):
    config = DockerConfig(ground.socket, SecretKey.generate().pubkey, cgroup_parent)
    return Proof(client, config, ProcMeter(cgroup_parent, boot_id(), SystemClock()))


async def test_a_sound_engine_passes_however_often(ground, client):
    proof = proof_on(ground, client, ground.cgroup_parent)
    await proof.prove()
    await proof.prove()


async def test_a_wrong_cgroup_parent_is_refused_by_name(ground, client):
    """Everything would run, nothing would be metered, and nobody would be told."""
    with pytest.raises(EngineUnusable, match="cgroup_parent '/docker'"):
        await proof_on(ground, client, "/docker").prove()


@contextmanager
def in_engines_network(ground, key, value):
    """Another value of a sysctl there, for a while."""
    enter = ["nsenter", "-t", str(ground.dockerd_pid), "-n", "--", "sysctl"]
    before = subprocess.check_output([*enter, "-n", key], text=True).strip()
    subprocess.run([*enter, "-qw", f"{key}={value}"], check=True)
    try:
        yield
    finally:
        subprocess.run([*enter, "-qw", f"{key}={before}"], check=True)


async def test_a_bridge_over_which_neighbours_reach_each_other_is_refused(ground, client):
    """Docker says that they do not: its rules are in iptables, which is not asked here."""
    with (
        in_engines_network(ground, "net.bridge.bridge-nf-call-iptables", 0),
        pytest.raises(EngineUnusable, match="reach each other"),
    ):
        await proof_on(ground, client, ground.cgroup_parent).prove()
