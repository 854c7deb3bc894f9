"""From paid to running, through the whole stack, against a bare ``docker run`` of the same image."""

import subprocess
import time
from statistics import median

import trio

from bot.adapters.nwc_client import known
from bot.adapters.nwc_wallet import NwcWallet
from bot.clock import SystemClock
from bot.devstack.sample import build_image
from bot.devstack.stack import Stack, stack
from bot.tools.client import open_client
from handlers.ports import PayStatus
from nips.keys import SecretKey
from nips.nip47 import parse_uri

ROUNDS = 9


class Starts:
    """Docker's own word for when a container started: the times of its start events.

    Asking the app's port instead would disturb what is measured: a packet that comes before the container's
    interface is up leaves the kernel waiting a second for its next ARP request.
    """

    def __init__(self) -> None:
        self._times_s: list[float] = []
        self._came = trio.Event()

    async def run(self, socket: str, task_status=trio.TASK_STATUS_IGNORED) -> None:
        command = [
            "docker",
            "-H",
            f"unix://{socket}",
            "events",
            "--filter",
            "event=start",
            "--format",
            "{{.TimeNano}}",
        ]
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        await trio.sleep(0.5)
        task_status.started()
        try:
            async for text in process.stdout:
                self._times_s += [int(line) / 1e9 for line in text.split()]
                self._came.set()
        finally:
            process.kill()

    async def after(self, began_s: float) -> float:
        """Seconds from then until the next container started."""
        with trio.fail_after(30):
            while True:
                for started_s in self._times_s:
                    if started_s > began_s:
                        return started_s - began_s
                self._came = trio.Event()
                await self._came.wait()


async def bare(on: Stack, starts: Starts, image: str, port: int) -> float:
    docker = ["docker", "-H", f"unix://{on.ground.place.socket}"]
    began_s = time.time()
    run = [*docker, "run", "-d", "--name", f"bare{port}", "-p", f"{port}:8080", image]
    await trio.run_process(run, capture_stdout=True)
    took = await starts.after(began_s)
    await trio.run_process([*docker, "rm", "-f", f"bare{port}"], capture_stdout=True)
    return took


async def paid(on: Stack, starts: Starts, me, wallet: NwcWallet, image: str) -> float:
    result = await me.call(on.instance, "deploy", docker=image, units=10, amount_sat=1_000)
    began_s = time.time()
    done = await wallet.pay(result["invoice"]["invoice"], 0, None)
    assert done.status is PayStatus.SETTLED
    took = await starts.after(began_s)
    await me.call(on.instance, "stop", pubkey=result["pubkey"], force=True)
    await trio.sleep(1.5)
    return took


async def measure() -> None:
    async with stack(
        lambda _: None,
        {"resume_ms": 1_000, "tariff": {"price_msat": 1_000, "interval_s": 1}},
        dockerd_may_pull=True,
    ) as on:
        image = await on.ground.push("bench/hello", "1", build_image(volumes=()))
        subprocess.run(
            ["docker", "-H", f"unix://{on.ground.place.socket}", "pull", "-q", image],
            check=True,
            capture_output=True,
        )
        wallet = NwcWallet(known(parse_uri(on.payer_uri())), SystemClock())
        async with (
            open_client(SecretKey.generate(), [on.relay_url]) as me,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(wallet.run)
            await wallet.wait_ready()
            starts = Starts()
            await nursery.start(starts.run, str(on.ground.place.socket))
            ours, theirs = [], []
            for number in range(ROUNDS):
                theirs.append(await bare(on, starts, image, 31_000 + number))
                ours.append(await paid(on, starts, me, wallet, image))
            nursery.cancel_scope.cancel()
    show(ours, theirs)


def show(ours: list[float], theirs: list[float]) -> None:
    a, b = median(ours) * 1_000, median(theirs) * 1_000
    print("\nFrom paid to running (Docker's start event; image present, 10 units)")
    print(
        f"  medians of {ROUNDS} rounds in turn: `docker run` {b:.0f} ms, pay_invoice -> running {a:.0f} ms: {a / b:.2f} x"
    )


def run() -> None:
    trio.run(measure)
