"""Running time costs what it costs, however a container dies; and what does not work gives its place back."""

from handlers.alarms import Alarm
from handlers.domain.ledger import container_account
from handlers.domain.lifecycle import State
from handlers.domain.trial import LONGEST_WAIT_S, TELL_AT
from handlers.errors import Refusal
from handlers.records import Intent
from handlers.transitions import held_units

DAY_S = 24 * 3_600


async def live(world, pubkey, seconds):
    """Let it be started, live so long, and die."""
    while not world.engine.containers[pubkey]["up"]:
        await world.run(1)
    await world.run(seconds)
    world.engine.kill(pubkey)
    await world.turn()


async def priced(world, pubkey):
    charged = 1_000_000 - await world.balance(container_account(pubkey))
    return charged, world.engine.total_ran_ms(pubkey) * 5_000 / 3_600_000


async def test_dying_within_three_seconds_and_living_for_four_once_in_a_while_is_not_free(world):
    """57 % of the running time was free: each short run was taken for a first try."""
    pubkey = await world.deployed(amount_sat=1_000)
    await live(world, pubkey, 4)
    for _ in range(2):
        for seconds in (2, 2, 2, 70):
            await live(world, pubkey, seconds)
    charged, price = await priced(world, pubkey)

    assert 0.95 * price <= charged <= price
    await world.audit()


async def test_asking_for_restarts_does_not_give_free_tries_again(world):
    pubkey = await world.deployed(amount_sat=1_000)
    for _ in range(20):
        await live(world, pubkey, 2)
        await world.run(60, step_s=5)
        await world.call("restart", pubkey=pubkey)
        await world.turn()
    charged, price = await priced(world, pubkey)
    free = 3 * 2_000 * 5_000 / 3_600_000

    assert 0.9 * (price - free) <= charged <= price


async def test_a_crash_loop_backs_off_is_told_once_and_gives_its_place_back(world):
    pubkey = await world.deployed(amount_sat=1_000)
    await world.run(70)
    starts = world.engine.started
    await watch_it_crash(world, pubkey, 600)
    assert 9 <= world.engine.started - starts <= 10
    await watch_it_crash(world, pubkey, 3 * LONGEST_WAIT_S)
    row = await world.row(pubkey)

    assert State.FAILED is row.state
    assert 11 == world.engine.started - starts
    assert 0 == await world.store.read(held_units)
    assert "exit code 1" in row.reason


async def watch_it_crash(world, pubkey, seconds):
    for _ in range(seconds):
        world.engine.kill(pubkey)
        await world.run(1)


async def messages(world):
    items = await world.store.read(lambda tx: tx.outbox.list_due(world.clock.now() + DAY_S, 1_000))
    return [item for item in items if item.intent is Intent.MESSAGE]


async def test_its_admin_hears_of_a_crash_loop_once(world):
    pubkey = await world.deployed(amount_sat=1_000)
    await world.run(70)
    before = len(await messages(world))
    for _ in range(TELL_AT + 3):
        await live(world, pubkey, 0)
    after = len(await messages(world))

    assert 1 == after - before


async def test_a_charge_that_cannot_be_written_does_not_drop_the_last_stretch_of_others(world):
    first, second = await world.deployed(amount_sat=1_000), await world.deployed(amount_sat=1_000)
    await world.run(70)
    await world.run(30)
    for pubkey in (first, second):
        world.engine.kill(pubkey)
    write, failures = world.store.write, 1

    async def failing(work, *args):
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError("disk full")
        return await write(work, *args)

    world.store.write = failing
    try:
        await world.turn()
    except OSError:
        world.store.write = write
    await world.turn()

    for pubkey in (first, second):
        charged, price = await priced(world, pubkey)
        assert 0.97 * price <= charged <= price


async def test_a_restart_stops_it_by_its_own_signal_first(world):
    pubkey = await world.deployed(amount_sat=1_000)
    await world.run(70)
    await world.call("restart", pubkey=pubkey)
    await world.turn()

    assert [(pubkey, world.ctx.policy.restart_grace_s)] == world.engine.halted
    assert world.engine.containers[pubkey]["up"]


async def test_a_running_container_needs_no_extra_hour_to_be_restarted(world):
    """Deployed with its own default invoice, it was told "top it up first" from the first second on."""
    pubkey = await world.deployed()
    await world.run(120)

    assert "deployed" == (await world.call("restart", pubkey=pubkey))["state"]


async def test_who_must_top_up_is_told_how_much(world):
    pubkey = await world.deployed()
    await world.run(3_700, step_s=10)
    refused = await world.call("restart", pubkey=pubkey)

    assert "insufficient-balance: top it up by at least 5 sat first" == str(refused)


async def test_what_runs_and_cannot_be_metered_is_an_alarm_and_nothing_more_is_let_in(world):
    """With a wrong cgroup parent everything ran, nothing was charged, and nobody was told."""
    pubkey = await world.deployed()
    await world.turn()
    assert Alarm.METER not in world.ctx.alarms.raised
    world.engine.unseen.add(pubkey)
    await world.turn()
    assert pubkey in world.ctx.alarms.raised[Alarm.METER]
    refused = await world.call("deploy", docker="example.com/app:1", units=1)
    assert isinstance(refused, Refusal)
    assert Alarm.METER.value in refused.text
    world.engine.unseen.clear()
    await world.turn()
    assert Alarm.METER not in world.ctx.alarms.raised
    assert not isinstance(await world.call("deploy", docker="example.com/app:1", units=1), Refusal)
