"""The channel from a real container on its own bridge: its token works from its address, and nowhere else."""

import json
import os
import re
import subprocess
import sys

import pytest

from bot.devstack.engine import SERVER_GID
from bot.devstack.registry import push
from bot.devstack.sample import build_image
from tests.conftest import REPO

pytestmark = pytest.mark.dockerd
KNOCK = (
    "knock() { printf 'GET / HTTP/1.1\\r\\nHost: enclaved\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
    'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\ntoken: %s\\r\\n\\r\\n\' "$1"'
    " | nc -w 20 enclaved $PORT; }; "
    "echo own; knock $OWN; echo; echo other; knock $OTHER; echo; echo none; knock ''; echo; echo done; sleep 100"
)


async def test_a_token_works_from_its_own_containers_address_only(ground, tmp_path):
    image = build_image(KNOCK, ports=(), volumes=())
    digest = await push(ground.registry, "knocker", "1", image)
    reference = f"{ground.registry}/knocker@{digest}"
    # In dockerd's network, which is cut off but for a server that lives there.
    inside = ["nsenter", "-t", str(ground.dockerd_pid), "-n", "--", "setpriv", "--regid", str(SERVER_GID), "--clear-groups",
              "env", f"PYTHONPATH={REPO}"]  # fmt: skip
    script = str(REPO / "tests/adapters/door_inside.py")
    done = subprocess.run(
        [*inside, sys.executable, script, ground.socket, ground.cgroup_parent, ground.registry, reference, str(tmp_path)],
        capture_output=True, text=True, timeout=120, env={**os.environ},
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    for log in json.loads(done.stdout):
        said = re.findall(r"(own|other|none|HTTP/1.1 \d+)", log)
        assert ["own", "HTTP/1.1 101", "other", "HTTP/1.1 403", "none", "HTTP/1.1 403"] == said, (
            log
        )
