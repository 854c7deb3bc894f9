"""Ports of a bridge in a namespace of its own: no engine, only somebody who listens at a socket there."""

import itertools
import os
import subprocess
import sys
from contextlib import asynccontextmanager, closing

import pytest
import trio

from bot.adapters.docker_engine import EngineUnusable
from bot.adapters.engine.isolation import Isolation

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces")
LISTEN = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print("up", flush=True); sys.stdin.read()
"""
PING = "import socket,sys; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.sendto(b'x',(sys.argv[1],9))"


class Space:
    """A network namespace with a bridge, and others with one end of a veth pair each."""

    def __init__(self, socket):
        self.socket, self._others = str(socket), []
        self._holder = self._hold([sys.executable, "-c", LISTEN, self.socket])
        self.run("ip", "link", "add", "br0", "type", "bridge")
        self.run("ip", "addr", "add", "192.0.2.1/24", "dev", "br0")
        self.run("ip", "link", "set", "br0", "up")

    def _hold(self, command):
        process = subprocess.Popen(
            ["unshare", "-n", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"up\n"
        return process

    def run(self, *command, of=None):
        enter = ["nsenter", "-t", str((of or self._holder).pid), "-n", "--"]
        return subprocess.run(
            [*enter, *command], check=True, capture_output=True, text=True
        ).stdout

    def join(self, *, bridge="br0"):
        """Another namespace at the bridge; its number."""
        number = len(self._others) + 2
        other = self._hold(["sh", "-c", "echo up; cat"])
        self._others.append(other)
        self.run("ip", "link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", str(other.pid))  # fmt: skip
        self.run("ip", "link", "set", f"p{number}", "up", "master", bridge)
        self.run("ip", "addr", "add", f"192.0.2.{number}/24", "dev", "eth0", of=other)
        self.run("ip", "link", "set", "eth0", "up", of=other)
        return number

    def leave(self, number):
        self.run("ip", "link", "del", f"p{number}")

    def sees(self, number, whom):
        """Whether one gets an answer to its ARP request for another."""
        other = self._others[number - 2]
        self.run(sys.executable, "-c", PING, f"192.0.2.{whom}", of=other)
        for _ in range(8):
            shown = self.run("ip", "neigh", "show", f"192.0.2.{whom}", of=other)
            if "lladdr" in shown:
                return True
            subprocess.run(["sleep", "0.1"], check=True)
        return False

    def isolated(self):
        """Ports that are."""
        shown = self.run("bridge", "-d", "link", "show").split("\n")
        return {
            line.split()[1].partition("@")[0]
            for line, about in itertools.pairwise(shown)
            if "master" in line and "isolated on" in about
        }

    def end(self):
        for process in [*self._others, self._holder]:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


@pytest.fixture
def space(tmp_path):
    made = Space(tmp_path / "s")
    yield made
    made.end()


async def until(condition, seconds=15):
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.02)


def test_neighbours_that_are_there_already_are_kept_apart_and_still_see_us(space):
    one, two = space.join(), space.join()
    assert space.sees(one, two), "without it they do"
    three = space.join()
    isolation = Isolation(space.socket, "br0")
    assert {"p2", "p3", "p4"} == space.isolated()
    assert not space.sees(three, two)
    assert not space.sees(three, one)
    assert space.sees(three, 1)
    four = space.join()
    isolation.isolate_all()
    assert not space.sees(four, one)
    isolation.close()


@asynccontextmanager
async def watched(space):
    """Closed only when nobody watches any more: a thread may be in the middle of it."""
    with closing(Isolation(space.socket, "br0")) as isolation:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(isolation.watch)
            yield
            nursery.cancel_scope.cancel()


async def test_a_port_is_isolated_when_it_comes(space):
    async with watched(space):
        one, _ = space.join(), space.join()
        await until(lambda: space.isolated() == {"p2", "p3"})
        space.leave(one)
        space.join()
        await until(lambda: space.isolated() == {"p3", "p4"})


async def test_many_that_come_and_go_at_once(space):
    async with watched(space):
        for _ in range(30):
            await trio.to_thread.run_sync(space.join)
            if len(space._others) % 3 == 0:
                await trio.to_thread.run_sync(space.leave, len(space._others) + 1)
        await until(lambda: len(space.isolated()) == 20)


def test_other_bridges_are_left_alone(space):
    space.run("ip", "link", "add", "br1", "type", "bridge")
    space.join(bridge="br1")
    space.join()
    Isolation(space.socket, "br0").close()
    assert {"p3"} == space.isolated()


def test_a_bridge_that_is_not_there_is_refused(space, tmp_path):
    with pytest.raises(EngineUnusable, match="br7 cannot be isolated"):
        Isolation(space.socket, "br7")
    with pytest.raises(EngineUnusable, match="br0 cannot be isolated"):
        Isolation(str(tmp_path / "nobody"), "br0")
