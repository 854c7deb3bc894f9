"""From power-on to ready, step by step, of the Dockerfile's image in namespaces: fresh once, then restored after power cuts.

Without a kernel: a real enclave's needs some seconds more.
"""

from collections import defaultdict
from statistics import median

import trio

from bot.devstack.demo import POLICY
from bot.devstack.whole import whole_stack

ROUNDS = 5


def run() -> None:
    fresh, restored, whole_s = trio.run(_measure)
    print(f"boot: seconds by step, fresh; restored (median of {ROUNDS})")
    for step, took in fresh.items():
        print(f"  {step:12} {took:6.2f}   {median(restored[step]):6.2f}")
    print(f"  {'whole':12} {'':6}   {median(whole_s):6.2f}   (aim: under 10)")


async def _measure() -> tuple[dict[str, float], dict[str, list[float]], list[float]]:
    restored, whole_s = defaultdict[str, list[float]](list), []
    async with whole_stack(lambda _: None, POLICY) as on:
        fresh = await _took(on)
        for _ in range(ROUNDS):
            await on.enclave.cut_power()
            began = trio.current_time()
            await on.enclave.start()
            await on.enclave.ready()
            whole_s.append(trio.current_time() - began)
            for step, took in (await _took(on)).items():
                restored[step].append(took)
    return fresh, restored, whole_s


async def _took(on) -> dict[str, float]:
    """As the parent was told, once it was told that all is done."""
    with trio.fail_after(30):
        while True:
            status = await on.enclave.status()
            if status["report"].get("step") == "ready" and status["reported_s_ago"] < 2:
                return status["report"]["took_s"]
            await trio.sleep(0.2)
