"""A container that dockerd is removing, or failed to remove: it shows nothing of it any more, and says so by 409."""

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler

import pytest

from bot.adapters.docker_engine import DockerConfig, DockerEngine
from bot.adapters.image_store import ImageStore, StoreConfig
from bot.adapters.oci_registry import OciRegistry
from bot.adapters.registry_client import RegistryConfig
from bot.clock import SystemClock, boot_id
from nips.keys import SecretKey

ANSWERS = {
    "GET version": (200, {"ApiVersion": "1.41"}),
    "GET json": (200, {"Id": "c", "Config": {"Labels": {}, "Tty": False}, "State": {"StartedAt": "2026-01-01T00:00:00Z"}}),
    "GET logs": (409, {"message": "can not get logs from container which is dead or marked for removal"}),
    "DELETE": (204, None),
}  # fmt: skip


class Dockerd(BaseHTTPRequestHandler):
    def answer(self):
        last = self.path.partition("?")[0].rpartition("/")[2]
        self.server.asked.append(self.command)
        status, body = ANSWERS.get(f"{self.command} {last}") or ANSWERS[self.command]
        text = json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_DELETE = answer

    def address_string(self):
        return "unix"

    def log_message(self, *words):
        pass


@pytest.fixture
def dockerd(tmp_path):
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "sock"), Dockerd) as server:
        server.daemon_threads, server.asked = True, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def engine(dockerd, tmp_path):
    socket, clock = str(tmp_path / "sock"), SystemClock()
    images = ImageStore(
        StoreConfig(tmp_path / "images", socket, "us", 10**9), OciRegistry(RegistryConfig()), clock
    )
    made = DockerEngine(DockerConfig(socket, "us", "/docker"), images, boot_id(), clock)
    yield made
    made.close()


async def test_its_logs_are_empty(engine):
    assert await engine.logs(SecretKey.generate().pubkey, 10) == ""


async def test_it_is_removed_all_the_same(engine, dockerd):
    await engine.remove(SecretKey.generate().pubkey, keep_volumes=True)

    assert "DELETE" in dockerd.asked
