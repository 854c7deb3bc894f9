"""The server opens and closes ports through netstack, as containers come and go."""

from functools import partial
from types import SimpleNamespace

import pytest
import trio

from bot.adapters.enclave_network import AGAIN_S, EnclaveNetwork
from bot.config import HttpConfig, NetworkConfig, RelaysConfig
from bot.server import app as composition
from bot.server import loops
from bot.server.parts import TrioNudges
from handlers.domain.lifecycle import State
from handlers.loops import Loop
from handlers.records import PublishedPort
from netstack.control import Refused
from tests.net.lab import CONTAINERS, PARENT, running

C1 = CONTAINERS["c1"][1]


@pytest.fixture
def lab(tmp_path):
    with running(tmp_path, inside={"public": [8_081]}) as lab:
        lab.serve("c1", 80)
        lab.serve("enc", 8_081)
        for port in (20_000, 20_001):
            lab.do("enc", "iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-m", "addrtype",
                   "--dst-type", "LOCAL", "--dport", str(port), "-j", "DNAT", "--to-destination", f"{C1}:80")  # fmt: skip
        yield lab


def reached(lab):
    """Those of our ports that answer."""
    return [p for p in (8_081, 20_000, 20_001) if not lab.blocked("inet", "tcp", PARENT, p)]


async def test_ports_of_what_runs_are_open_and_no_others(lab):
    network = EnclaveNetwork(lab.folder / "local.sock", [8_081])
    one, two = PublishedPort(20_000, "80/tcp"), PublishedPort(20_001, "80/tcp")
    reach = lambda: trio.to_thread.run_sync(reached, lab)  # noqa: E731

    assert await reach() == []
    assert await network.set([one], [C1]) is True
    assert await reach() == [8_081, 20_000]
    assert await network.set([two, one], [C1]) is True
    assert await reach() == [8_081, 20_000, 20_001]
    assert lab.call("get_traffic")[C1]["sent_bytes"] > 0
    assert await network.set([one, two], [C1]) is False  # the same
    assert await network.set([two], [C1]) is True
    assert await reach() == [8_081, 20_001]
    await trio.to_thread.run_sync(lab.stop, "parent")
    await trio.to_thread.run_sync(lab.start, "parent")
    assert await reach() == [8_081, 20_001]
    with pytest.raises(Refused, match="22"):
        await network.set([PublishedPort(22, "80/tcp")], [C1])
    assert await network.set([], []) is True
    assert await reach() == [8_081]
    assert lab.call("get_traffic") == {}


async def test_where_nobody_listens_it_is_an_error_each_time(tmp_path):
    gone = EnclaveNetwork(tmp_path / "nobody.sock", [])
    for _ in range(2):
        with pytest.raises(OSError):
            await gone.set([], [])


async def test_what_was_said_is_said_again_when_somebody_may_have_started_anew(
    monkeypatch, autojump_clock
):
    said = []

    async def call(_, method, **params):
        await trio.lowlevel.checkpoint()
        said.append((method, params))

    monkeypatch.setattr("bot.adapters.enclave_network.control.call", call)
    network = EnclaveNetwork("/x.sock", [443])

    assert await network.set([], []) is True
    assert await network.set([], []) is False
    await trio.sleep(AGAIN_S)
    assert await network.set([], []) is True
    assert (
        said
        == [
            ("set_containers", {"containers": {}}),
            ("set_ports", {"tcp": [443], "udp": []}),
        ]
        * 2
    )


def test_the_servers_own_ports_are_those_that_others_can_reach():
    def config(host, relay_host="127.0.0.1", control="/x.sock"):
        return SimpleNamespace(
            network=NetworkConfig(control),
            http=HttpConfig(host, 8_081),
            relays=RelaysConfig(embedded_host=relay_host, embedded_port=7_777),
        )

    assert composition._network(config("0.0.0.0"))._own == [8_081]
    assert composition._network(config("0.0.0.0", "10.0.0.1"))._own == [7_777, 8_081]
    assert composition._network(config("localhost"))._own == []
    assert composition._network(config("0.0.0.0", control=None)) is None


async def test_the_loop_opens_what_is_deployed_and_outlives_a_network_that_is_away(
    autojump_clock, nursery
):
    rows = [SimpleNamespace(ports=(PublishedPort(20_000, "80/tcp"),))]
    told = []

    class Store:
        async def read(self, ask):
            await trio.lowlevel.checkpoint()

            def list_in(states):
                assert states == [State.DEPLOYED]
                return rows

            return ask(SimpleNamespace(containers=SimpleNamespace(list_in=list_in)))

    class Engine:
        async def addresses(self):
            await trio.lowlevel.checkpoint()
            return {C1: "pubkey"}

    class Network:
        async def set(self, ports, containers):
            await trio.lowlevel.checkpoint()
            told.append((list(ports), list(containers)))
            if len(told) == 1:
                raise OSError("away")

    app = SimpleNamespace(
        network=Network(), ctx=SimpleNamespace(store=Store()), engine=Engine(), nudges=TrioNudges()
    )
    loop = Loop("network", partial(loops.tell_network, app), 1)
    nursery.start_soon(loops.run_loop, app, loop)
    await trio.sleep(2.5)
    nursery.cancel_scope.cancel()

    assert told == [([PublishedPort(20_000, "80/tcp")], [C1])] * 3
