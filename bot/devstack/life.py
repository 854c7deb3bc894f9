"""DEVELOPMENT ONLY. The life of an enclave, live: money and data, a power cut, the restore, and a signed upgrade; with what
the parent's operator sees meanwhile."""

import logging
from pathlib import Path
from typing import Any

import structlog
import trio

from bot.adapters.nwc_client import known
from bot.adapters.nwc_wallet import NwcWallet
from bot.clock import SystemClock
from bot.devstack.demo import POLICY, Failed, Transcript
from bot.devstack.enclave import until
from bot.devstack.sample import build_image
from bot.devstack.stack import Stack
from bot.devstack.wallet import PATIENCE
from bot.devstack.whole import whole_stack
from bot.terminal import say
from bot.tools.client import CallRefused, Client, NoAnswer, open_client
from bot.tools.parent import status_lines
from handlers.ports import PayStatus
from nips.keys import SecretKey
from nips.nip19 import npub
from nips.nip47 import parse_uri

# Counts in its volume, twice a second, and says from where it began.
COUNTS = (
    "[ -e /data/n ] || echo 0 >/data/n; echo begins at $(cat /data/n); "
    "while :; do echo $(($(cat /data/n) + 1)) >/data/n; echo at $(cat /data/n); sleep 0.5; done"
)


async def life() -> int:
    """The exit code."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    out, failures = Transcript(), list[BaseException]()
    try:
        async with (
            whole_stack(out.say, POLICY) as on,
            open_client(SecretKey.generate(), [on.relay_url]) as me,
        ):
            await _play(out, on, me)
    except* (Failed, CallRefused, NoAnswer, trio.TooSlowError) as group:
        failures.append(group)
    say("", f"FAILED: {failures[0]!r}" if failures else "Everything is stopped and cleaned up.")
    return 1 if failures else 0


async def _play(out: Transcript, on: Stack, me: Client) -> None:
    out.step(
        1, "a stranger deploys, and pays; the invoice left only when a restore would know of it"
    )
    pubkey = await _deploy(on, me)
    out.done(f"{npub(pubkey)} runs on {npub(on.instance)}")

    out.step(2, "it counts in its volume; a checkpoint goes to the parent, who cannot read it")
    await _counted(on, me, pubkey, 6)
    await _checkpoint_with_disks(on)
    counted, balance = await _counted(on, me, pubkey, 0), await _balance(on, me, pubkey)
    for line in status_lines(await on.enclave.status()):
        out.say(f"| {line}")
    out.done(f"it has come to {counted}; {balance} sat are left")

    out.step(3, "the power is cut: kill -9, and all memory is gone, containers and books alike")
    identity = on.instance
    await on.enclave.cut_power()
    out.done("nothing is left but what the parent has: " + _kept(on))

    out.step(
        4,
        "power on: escrow gives the key and names the newest checkpoint, the parent hands it over",
    )
    await on.enclave.start()
    _expect(identity == await on.enclave.ready(), "the same identity")
    out.done(f"the same identity again: {npub(identity)}")

    out.step(5, "the container is back, with its volume as of the checkpoint, and its balance")
    begun = await _begun(on, me, pubkey)
    _expect(begun >= counted - 10, "the volume of the checkpoint")
    again = await _balance(on, me, pubkey)
    _expect(0 <= balance - again <= 60 or again >= balance, "the balance")
    out.done(f"it went on counting from {begun}; {again} sat are left")

    out.step(
        6, "an orderly end: a last checkpoint, then an upgrade that nobody signed, which halts"
    )
    await on.enclave.stop()
    await on.enclave.cut_power()
    on.enclave.image = await trio.to_thread.run_sync(on.enclave.changed_image)
    await on.enclave.start(signed=False)
    out.done(f"halted: {await on.enclave.halted()}")

    out.step(7, "the same upgrade, signed by its maintainer")
    await on.enclave.stop()
    await on.enclave.start()
    _expect(identity == await on.enclave.ready(), "the same identity under new PCRs")
    begun = await _begun(on, me, pubkey)
    out.done(f"the same identity under new PCRs, and the container counts on from {begun}")


async def _deploy(on: Stack, me: Client) -> str:
    image = await on.ground.push("sample/counts", "1", build_image(COUNTS, ports=()))
    wallet = NwcWallet(
        known(parse_uri(on.payer_uri())), SystemClock(), answer_s=5, relay_policy=PATIENCE
    )
    deployed = await _ask(on, me, "deploy", docker=image, units=1, amount_sat=500)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wallet.run)
        await wallet.wait_ready()
        invoice = deployed["invoice"]
        paid = await wallet.pay(invoice["invoice"], invoice["amount"], None)
        _expect(paid.status is PayStatus.SETTLED, "the payment settles")
        nursery.cancel_scope.cancel()
    return str(deployed["pubkey"])


async def _ask(on: Stack, me: Client, method: str, **params: object) -> dict[str, Any]:
    """Again when nobody answered, or when it is not the moment."""
    with trio.fail_after(60):
        while True:
            try:
                with trio.move_on_after(10):
                    result: dict[str, Any] = await me.call(on.instance, method, **params)
                    return result
            except NoAnswer:
                pass
            except CallRefused as refused:
                if not any(word in str(refused) for word in ("unavailable", "slow down")):
                    raise
            await trio.sleep(0.5)


async def _words(on: Stack, me: Client, pubkey: str, word: str) -> list[int]:
    """The numbers that it wrote behind that word."""
    text = (await _ask(on, me, "logs", pubkey=pubkey))["logs"]
    lines = [line.split() for line in text.splitlines()]
    return [int(words[-1]) for words in lines if word in words and words[-1].isdecimal()]


async def _counted(on: Stack, me: Client, pubkey: str, at_least: int) -> int:
    return await _last(on, me, pubkey, "at", at_least)


async def _begun(on: Stack, me: Client, pubkey: str) -> int:
    return await _last(on, me, pubkey, "begins", 0)


async def _last(on: Stack, me: Client, pubkey: str, word: str, at_least: int) -> int:
    with trio.fail_after(60):
        while True:
            found = await _words(on, me, pubkey, word)
            if found and found[-1] >= at_least:
                return found[-1]
            await trio.sleep(1)


async def _balance(on: Stack, me: Client, pubkey: str) -> int:
    return int((await _ask(on, me, "balance", pubkey=pubkey))["balance_sat"])


async def _checkpoint_with_disks(on: Stack) -> None:
    before = len(on.enclave.said("checkpoint"))
    await until(
        lambda: any(r["full"] and r["disks"] for r in on.enclave.said("checkpoint")[before:]), 60
    )


def _kept(on: Stack) -> str:
    blobs = [p for p in Path(on.enclave.folder / "parent/blobs").iterdir() if p.is_file()]
    return f"{len(blobs)} sealed blobs, {sum(p.stat().st_size for p in blobs) / 2**20:.1f} MiB"


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise Failed(f"expected: {what}")
