"""Kills, and what is seen from outside: the process, its files, an honest client's pings, and what Docker says ran."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import trio

from bench.soak.scene import Scene
from bot.tools.client import CallRefused, NoAnswer, open_client
from nips.keys import SecretKey

PING_EVERY_S, PING_S = 0.6, 5
LABEL = "enclaved.pubkey"


@dataclass(frozen=True)
class Sample:
    """The server's process at a moment, and its files by name, in bytes."""

    at_s: float
    pid: int
    rss_mib: float
    fds: int
    threads: int
    files: dict[str, int]


@dataclass
class Watch:
    """Everything that was seen. ``pings``: (asked at, ms or None for no answer), those during outages left out."""

    scene: Scene
    began: float = field(default_factory=trio.current_time)
    samples: list[Sample] = field(default_factory=list)
    pings: list[tuple[float, float | None]] = field(default_factory=list)
    kills: int = 0
    wallet_kills: int = 0
    descriptors: Counter[str] = field(default_factory=Counter)
    # container's id -> [pubkey, started, ended or None], in seconds of Unix time
    runs: dict[str, list[tuple[str, float, float | None]]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.scene.on.ground.place.folder

    # -- kills --------------------------------------------------------------------------------------

    async def kill_again_and_again(self) -> None:
        plan = self.scene.plan
        for number in range(1, int(plan.load_s / plan.kill_every_s) + 1):
            await trio.sleep_until(self.began + number * plan.kill_every_s)
            if number * plan.kill_every_s >= plan.load_s:
                return
            if number % plan.wallet_kill_every == 0:
                self.wallet_kills += self._kill(f"bot.devstack.wallet .*{self.folder}/wallet ")
            self.scene.outages.begin()
            self.kills += self._kill(self._server)

    @property
    def _server(self) -> str:
        return f"bot run --config {self.folder}/enclaved.toml"

    @staticmethod
    def _kill(pattern: str) -> bool:
        pids = _pids(pattern)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return bool(pids)

    # -- samples ------------------------------------------------------------------------------------

    async def sample_again_and_again(self) -> None:
        while True:
            await trio.sleep(self.scene.plan.sample_every_s)
            await trio.to_thread.run_sync(self.sample)

    def sample_quiet(self) -> None:
        """The last look; what its descriptors are is kept as well."""
        self.sample()
        for descriptor in Path(f"/proc/{self.samples[-1].pid}/fd").iterdir():
            kind = re.sub(r"[0-9]+", "", str(descriptor.readlink()))
            self.descriptors[kind.replace(str(self.folder), "")] += 1

    def sample(self) -> None:
        """One look, if the server is up this moment: what it is while it starts is no baseline."""
        if self.scene.outages.is_open:
            return
        try:
            found = [(_rss_kib(pid), pid) for pid in _pids(self._server)]
            rss_kib, pid = max(found, default=(0, 0))
            if not pid:
                return
            process = Path(f"/proc/{pid}")
            fds, threads = (
                len(list((process / "fd").iterdir())),
                len(list((process / "task").iterdir())),
            )
        except OSError:
            return
        sample = Sample(self._now_s(), pid, rss_kib / 1_024, fds, threads, self._files())
        self.samples.append(sample)

    def _now_s(self) -> float:
        return trio.from_thread.run_sync(trio.current_time) - self.began

    def _files(self) -> dict[str, int]:
        """Of the state, and of what the server logs."""
        state, sizes = self.scene.on.state, {}
        for path in [*state.rglob("*"), self.folder / "enclaved.log"]:
            try:
                name = "logs/" if "logs" in path.parent.parts[-1:] else path.name
                if path.is_file():
                    sizes[name] = sizes.get(name, 0) + path.stat().st_size
            except OSError:
                pass
        return sizes

    # -- an honest client -----------------------------------------------------------------------------

    async def ping_again_and_again(self) -> None:
        async with open_client(SecretKey.generate(), [self.scene.on.relay_url]) as me:
            while True:
                asked = trio.current_time()
                try:
                    with trio.move_on_after(PING_S) as scope:
                        await me.call(self.scene.on.instance, "ping")
                    answered = not scope.cancelled_caught
                except NoAnswer:
                    answered = False
                except CallRefused as refused:
                    answered = True
                    self.scene.tally.counts[f"pings refused {str(refused)[:30]}"] += 1
                self._book_ping(asked, trio.current_time(), answered=answered)
                await trio.sleep(PING_EVERY_S)

    def _book_ping(self, asked: float, now: float, *, answered: bool) -> None:
        outages = self.scene.outages
        overlaps = outages.touches(asked, now)
        if answered and (not outages.is_open or asked > outages.spans[-1][0]):
            outages.end()
        if not overlaps:
            self.pings.append((asked - self.began, (now - asked) * 1_000 if answered else None))

    # -- Docker's own word ----------------------------------------------------------------------------

    async def follow_docker(self, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        command = [
            "docker", "-H", f"unix://{self.scene.on.ground.place.socket}", "events", "--filter", "type=container",
            "--filter", "event=start", "--filter", "event=die", "--format", "{{json .}}",
        ]  # fmt: skip
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        await trio.sleep(0.5)
        task_status.started()
        rest = b""
        try:
            async for chunk in process.stdout:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._book_event(json.loads(line))
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    def _book_event(self, event: dict) -> None:
        pubkey = event["Actor"]["Attributes"].get(LABEL)
        if pubkey is None:
            return
        at_s, runs = event["timeNano"] / 1e9, self.runs.setdefault(event["Actor"]["ID"], [])
        if event["Action"] == "start":
            runs.append((pubkey, at_s, None))
        elif runs and runs[-1][2] is None:
            runs[-1] = (*runs[-1][:2], at_s)

    def ran(self, now_s: float) -> dict[str, list[float]]:
        """How long each run of each container lasted, in seconds."""
        lasted: dict[str, list[float]] = {}
        for runs in self.runs.values():
            for pubkey, began_s, ended_s in runs:
                lasted.setdefault(pubkey, []).append((ended_s or now_s) - began_s)
        return lasted

    def lives(self) -> list[list[Sample]]:
        """The samples of each process of the server."""
        found: list[list[Sample]] = []
        for before, sample in pairwise([None, *self.samples]):
            if before is None or before.pid != sample.pid:
                found.append([])
            found[-1].append(sample)
        return found


async def attack(scene: Scene) -> None:
    """The attackers' process, and what it says that it did."""
    on = scene.on
    told = {
        "relay_port": int(on.relay_url.rpartition(":")[2]),
        "http_port": int(on.public_url.rpartition(":")[2]),
        "instance": on.instance,
        "image": scene.images["behaves"],
        "slow_image": f"127.0.0.1:{scene.drip_port}/slow/image:1",
        "rng": scene.plan.seed,
    }
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "bench.soak.attackers", json.dumps(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    rest = b""
    try:
        async for chunk in process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(lambda text: text.startswith(b"{"), lines):
                done = json.loads(line)
                for name, count in done["counts"].items():
                    scene.tally.counts[f"attack {name}"] += count
                scene.tally.counts["attacks"] += len(done["attacks"])
        scene.tally.violated(f"the attackers ended by themselves: {await process.wait()}")
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def _pids(pattern: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def _rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0
