"""One soak from beginning to end: load, quiet, checks. The violations, which were printed as well."""

import time

import trio

from bench.soak import tenants
from bench.soak.books import Books, surprises
from bench.soak.plan import Plan
from bench.soak.report import judge, table
from bench.soak.scene import Scene, scene
from bench.soak.watch import Watch, attack
from bot.tools.client import CallRefused, NoAnswer


async def soak(plan: Plan) -> list[str]:
    """In words, what was violated; empty when all held."""
    print(f"soak of {plan.load_s:.0f} s, seed {plan.seed}", flush=True)
    async with scene(plan) as on, trio.open_nursery() as nursery:
        watch = Watch(on)
        place = on.on.ground.place
        books = Books(place.folder, place.socket)
        await nursery.start(watch.follow_docker)
        nursery.start_soon(watch.sample_again_and_again)
        nursery.start_soon(watch.ping_again_and_again)
        await _load(on, watch)
        await _quiet(on, books)
        await _check(on, watch, books)
        print(*table(on, watch, books), sep="\n", flush=True)
        nursery.cancel_scope.cancel()
    told = on.tally.violations
    print("", *(f"VIOLATED: {text}" for text in told), sep="\n")
    print(f"{len(told)} violated" if told else "all held", flush=True)
    return told


async def _load(on: Scene, watch: Watch) -> None:
    with trio.move_on_after(on.plan.load_s):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.kill_again_and_again)
            nursery.start_soon(attack, on)
            nursery.start_soon(_tell, on, watch)
            nursery.start_soon(tenants.verify_now_and_then, on)
            for number in range(on.plan.tenants):
                nursery.start_soon(tenants.live, on, number)


async def _tell(on: Scene, watch: Watch) -> None:
    """A line each time that something was seen, for who waits."""
    while True:
        await trio.sleep(max(10, on.plan.sample_every_s))
        if watch.samples:
            last, now_s = watch.samples[-1], trio.current_time() - watch.began
            ms = [ms for at, ms in watch.pings[-20:] if ms is not None]
            print(
                f"{now_s:5.0f} s  {watch.kills} kills  RSS {last.rss_mib:.0f} MiB  {last.fds} fds  "
                f"{last.threads} threads  ping {max(ms, default=0):.0f} ms at most",
                flush=True,
            )


async def _quiet(on: Scene, books: Books) -> None:
    """Until everything is concluded."""
    unfinished = books.unfinished()
    with trio.move_on_after(on.plan.quiet_s):
        while unfinished := books.unfinished():
            await trio.sleep(1)
    for what in unfinished:
        on.tally.violated(f"{what}, {on.plan.quiet_s:.0f} s after the load")


async def _check(on: Scene, watch: Watch, books: Books) -> None:
    try:
        with trio.fail_after(120):
            await tenants.last_job(on)
    except (CallRefused, NoAnswer, trio.TooSlowError) as error:
        on.tally.violated(f"a newcomer is not served in the end: {error!r}")
    if missing := await tenants.missing_receipts(on):
        on.tally.violated(f"{missing} of {len(on.zaps)} paid zaps have no receipt")
    for what in await _differences(on, books):
        on.tally.violated(what)
    for what in books.overcharged(watch.ran(time.time())):
        on.tally.violated(what)
    await trio.to_thread.run_sync(watch.sample_quiet)
    for what, count in surprises(watch.folder / "enclaved.log").items():
        on.tally.violated(f"{count} times in the log: {what}")
    judge(on, watch, books)


async def _differences(on: Scene, books: Books) -> list[str]:
    """A sweep may be on its way when we look; what is wrong stays wrong."""
    differences: list[str] = []
    for _ in range(30):
        differences = await trio.to_thread.run_sync(books.differences, on.on.payer.pubkey)
        if not differences:
            break
        await trio.sleep(1)
    return differences
