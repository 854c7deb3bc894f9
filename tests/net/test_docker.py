"""Containers on Docker's own bridge inside the enclave's namespace, with both data planes."""

import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bot.boot.supervisor import Supervisor
from bot.devstack.engine import EnginePlace, PrivateEngine
from bot.devstack.spaces import Space
from netstack.dns import docker_settings
from tests.net.certificates import make_certificates
from tests.net.lab import ELSEWHERE, INTERNET, PARENT, WHO, Lab, run
from tests.net.test_dns import upstream

pytestmark = [pytest.mark.dockerd]
PUBLISHED = 20_000


class EnclaveEngine(PrivateEngine):
    """The private Docker, in a namespace that is there: it has nothing but netstack's device."""

    def __init__(self, place, lab):
        super().__init__(place)
        self._space = Space("namespaces", Path(f"/run/netns/{lab.space('enc')}"))

    async def _join_networks(self):
        pass

    async def _fence(self):
        pass  # the firewall under test is the only one

    def _settings(self):
        return replace(super()._settings(), network=docker_settings(1_500))


def busybox_image(folder):
    """An image without a registry."""
    file = folder / "image.tar"
    with tarfile.open(file, "w") as tar:
        tar.add(Path("/bin/busybox").resolve(), "bin/busybox")
        for name in ("sh", "wget", "nslookup", "sleep"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        (folder / "page").write_text("a page of a container\n")
        tar.add(folder / "page", "srv/index.html")
    return file


@pytest.mark.parametrize("kind", ["tun", "nfqueue"])
async def test_containers_on_dockers_bridges(tmp_path, kind, nursery):
    authority = make_certificates(tmp_path, "dns.example.net")
    resolver = {"upstreams": [f"{ELSEWHERE}@853#dns.example.net"], "certificates": str(authority)}
    lab = Lab(tmp_path / "lab", kind=kind, containers=False, resolver=resolver)
    # A short path: Docker puts Unix sockets deep into it.
    folder = Path(tempfile.mkdtemp(prefix="ns-", dir="/tmp"))
    place = EnginePlace(folder, f"encn{lab.space('x')[1:7]}", "", "127.0.0.1")
    supervisor = Supervisor(tmp_path)
    engine = EnclaveEngine(place, lab)
    try:
        await trio.to_thread.run_sync(lab.up)
        await trio.to_thread.run_sync(lab.start)
        upstream(lab, tmp_path, ELSEWHERE)
        (tmp_path / "index.html").write_text("a page of the internet\n")
        lab.spawn("inet", "busybox", "httpd", "-f", "-p", "80", "-h", str(tmp_path))
        await engine.start(supervisor, nursery)
        await trio.to_thread.run_sync(use, lab, engine, tmp_path)
    finally:
        with trio.CancelScope(shield=True):
            await supervisor.stop()
        lab.down()
        engine.clean_up()


def use(lab, engine, folder):
    def docker(*words, check=True):
        return subprocess.run(
            ["docker", "-H", f"unix://{engine.place.socket}", *words],
            stdout=-1, stderr=-2, text=True, errors="replace", timeout=60, check=check,
        ).stdout  # fmt: skip

    docker("import", str(busybox_image(folder)), "box")
    # Both on the default bridge, as bot/adapters/docker_engine puts them.
    options = json.loads(docker("network", "inspect", "bridge"))[0]["Options"]
    for option in ("enable_icc", "enable_ip_masquerade"):
        assert options[f"com.docker.network.bridge.{option}"] == "false"
    serve = ("busybox", "httpd", "-f", "-vv", "-p", "8080", "-h", "/srv")
    docker("run", "-d", "--name", "one", "-p", f"{PUBLISHED}:8080", "box", *serve)  # fmt: skip
    docker("run", "-d", "--name", "two", "box", "sleep", "600")

    def inside(name, *words):
        return docker("exec", name, *words, check=False)

    # TCP, by an address and by a name (UDP to the resolver, from there by TLS).
    assert inside("one", "wget", "-qO-", f"http://{INTERNET}/") == "a page of the internet\n"
    assert (
        inside("two", "wget", "-qO-", "http://anything.example.org/") == "a page of the internet\n"
    )
    assert ELSEWHERE in inside("one", "nslookup", "anything.example.org")
    # UDP beyond the resolver, fragments too; busybox has no such client, so ours enters its network.
    lab.serve("inet", 5_000)
    pid = json.loads(docker("inspect", "one"))[0]["State"]["Pid"]
    client = [sys.executable, str(WHO), "ask", "udp", INTERNET, "5000", "0"]
    ask = engine.enter(["nsenter", "-t", str(pid), "-n", *client])
    assert run(*ask, "10").split()[0] == PARENT
    assert run(*ask, "9000").split()[2] == "9000"
    # Inbound, with the client's address; closed again.
    assert lab.blocked("inet", "tcp", PARENT, PUBLISHED) or lab.kind == "nfqueue"
    lab.call("set_ports", tcp=[PUBLISHED])
    page = lab.do("inet", "busybox", "wget", "-qO-", f"http://{PARENT}:{PUBLISHED}/")
    assert page == "a page of a container\n"
    assert f"[::ffff:{INTERNET}]:" in docker("logs", "one")
    # Nothing else of this world.
    networks = json.loads(docker("inspect", "one"))[0]["NetworkSettings"]["Networks"]
    address = networks["bridge"]["IPAddress"]
    for host, port in (
        ("169.254.169.254", 80),
        (address, 8_080),
        ("10.118.0.1", 22),
        ("10.118.0.2", 1_082),
    ):
        assert inside("two", "sh", "-c", f"wget -T 2 -qO- http://{host}:{port}/ 2>&1 || echo failed").endswith("failed\n")  # fmt: skip
