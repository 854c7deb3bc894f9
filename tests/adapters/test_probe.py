"""The two programs that are started for a try, on this machine."""

import os
import signal
import subprocess
from ipaddress import IPv4Address

import pytest

from bot.adapters.engine.probe import REACHED, SILENCE, knock, pause


@pytest.fixture
def place(tmp_path):
    def put(program):
        path = tmp_path / "program"
        path.write_bytes(program)
        path.chmod(0o755)
        return str(path)

    return put


def test_one_waits_until_it_is_killed(place):
    process = subprocess.Popen([place(pause())])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGTERM)
    assert -signal.SIGTERM == process.wait(5)


def test_the_other_tells_a_refusal_from_silence(place):
    assert (
        REACHED == subprocess.run([place(knock(IPv4Address("127.0.0.1")))], check=False).returncode
    )
    if os.geteuid() != 0:
        pytest.skip("needs root, for a network in which nobody answers")
    quiet = "ip link add veth0 type veth peer name veth1 && ip addr add 192.0.2.1/24 dev veth0 && ip link set veth0 up && ip link set veth1 up && exec $0"
    silent = place(knock(IPv4Address("192.0.2.9")))
    ended = subprocess.run(["unshare", "-n", "sh", "-c", quiet, silent], check=False).returncode
    assert SILENCE == 128 - ended


def test_without_a_network_it_is_neither(place):
    if os.geteuid() != 0:
        pytest.skip("needs root, for a network namespace")
    ended = subprocess.run(["unshare", "-n", place(knock(IPv4Address("192.0.2.9")))], check=False)
    assert ended.returncode not in (REACHED, -signal.SIGALRM)
