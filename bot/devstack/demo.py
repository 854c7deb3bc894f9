"""DEVELOPMENT ONLY. The main job as a stranger does it, live, over the relay, with timings; then what the
enclave does for its key: a restart, and an upgrade that is refused until its maintainer signed it."""

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpcore
import orjson
import structlog
import trio

from bot.adapters.nwc_client import known
from bot.adapters.nwc_wallet import NwcWallet
from bot.boot.supervisor import ProgramFailed
from bot.clock import SystemClock
from bot.devstack.image import REPO
from bot.devstack.sample import build_image
from bot.devstack.stack import Stack, stack
from bot.terminal import say
from bot.tools.client import CallRefused, Client, NoAnswer, open_client
from handlers.ports import Minted, PayStatus
from nips import kinds, nip17
from nips.bolt11 import decode_invoice_untrusted
from nips.errors import BadInput
from nips.event import Event, sign_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip19 import npub, nsec
from nips.nip47 import parse_uri

# Fast enough to watch: 2 units cost 20 sat per 10 s.
POLICY: dict[str, Any] = {
    "resume_ms": 2_000,
    "announce_every_s": 60,
    "sweep_msat": 5_000,
    "tariff": {"price_msat": 10_000, "interval_s": 10},
    "rhythm": {"charge_every_ms": 1_000, "low_balance_ms": 6_000, "stays_up_ms": 1_000},
}
UNITS = 2


class Failed(Exception):
    """A step did not show what it should."""


class Transcript:
    """Prints what happens, with the seconds since the start and the milliseconds of each step."""

    def __init__(self) -> None:
        self._started = self._step = time.monotonic()

    def say(self, text: str) -> None:
        say(f"{time.monotonic() - self._started:7.2f} s   {text}")

    def step(self, number: int, title: str) -> None:
        self._step = time.monotonic()
        say("", f"{time.monotonic() - self._started:7.2f} s  [{number}] {title}")

    def done(self, text: str) -> None:
        self.say(f"✓ {text}   ({(time.monotonic() - self._step) * 1_000:.0f} ms)")


@dataclass(frozen=True)
class Actor:
    """A stranger with a key, a wallet, and a place to write to."""

    out: Transcript
    on: Stack
    me: Client
    wallet: NwcWallet
    image: str

    @property
    def instance(self) -> str:
        return self.on.instance


async def demo(*, once: bool) -> int:
    """Run the steps; then stay up until interrupted, unless ``once``. The exit code."""
    # Our own connection comes and goes with the instance; that is not worth a line here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    out = Transcript()
    failures: list[BaseException] = []
    try:
        await _run(out, once=once)
    except* (Failed, NoAnswer, CallRefused, ProgramFailed, trio.TooSlowError) as group:
        failures.append(_first(group))
    told = (
        f"The demo failed: {failures[0]!r}"
        if failures
        else "Everything is stopped and cleaned up."
    )
    say("", told)
    return 1 if failures else 0


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


async def _run(out: Transcript, *, once: bool) -> None:
    async with stack(out.say, POLICY) as on:
        image = await on.ground.push("sample/hello", "1", build_image())
        out.say(f"pushed the sample app to {image}")
        key = SecretKey.generate()
        wallet = NwcWallet(known(parse_uri(on.payer_uri())), SystemClock())
        async with open_client(key, [on.relay_url]) as me, trio.open_nursery() as nursery:
            nursery.start_soon(wallet.run)
            await wallet.wait_ready()
            await _main_job(Actor(out, on, me, wallet, image))
            if not once:
                _tell_how_to_talk(on, key, image)
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()


async def _main_job(a: Actor) -> None:
    a.me.watch(
        Filter(authors=frozenset({a.instance})),
        Filter(kinds=frozenset({kinds.GIFT_WRAP}), tags={"p": frozenset({a.me.key.pubkey})}),
    )
    await _discover(a)
    await _verify(a, 2, "the instance", npub(a.instance))
    await _mention(a)
    pubkey, invoice = await _deploy(a)
    a.me.watch(Filter(authors=frozenset({pubkey})), Filter(tags={"p": frozenset({pubkey})}))
    await _pay(a, invoice)
    await _see_it_run(a, pubkey)
    await _verify(a, 7, "the container", npub(pubkey))
    await _zap(a, pubkey)
    await _watch_metering(a, pubkey)
    await _read_logs(a, pubkey)
    await _stop_and_withdraw(a, pubkey)
    await _restart(a)
    await _upgrade_unsigned(a)
    await _upgrade_signed(a)


async def _discover(a: Actor) -> None:
    a.out.step(1, "discover the instance by its announcement")
    found = await a.me.wait_for(lambda e: e.kind == kinds.ANNOUNCEMENT)
    price, interval, free = (found.tag(name) for name in ("price", "interval", "units_free"))
    a.out.say(f"{npub(found.pubkey)}")
    a.out.done(
        f"{found.tag('name')}: {price} msat per unit and {interval} s, {free} units free, t={found.tag('t')}"
    )


async def _verify(a: Actor, number: int, what: str, who: str) -> None:
    a.out.step(number, f"verify {what} with `enclaved verify`, as anybody can")
    command = [str(REPO / ".venv/bin/enclaved"), "verify", who, "--relay", a.on.relay_url]
    command += ["--dev-root", str(a.on.enclave.root), "--repo", a.on.enclave.people.repo]
    command += ["--maintainer", npub(a.on.enclave.people.maintainer.pubkey)]
    done = await trio.run_process(command, capture_stdout=True, check=False)
    for line in done.stdout.decode().splitlines():
        a.out.say(line)
    _expect(done.returncode == 0, "it is valid")
    stranger = [word for word in command if word not in ("--dev-root", str(a.on.enclave.root))]
    refused = await trio.run_process(stranger, capture_stdout=True, check=False)
    _expect(refused.returncode == 1, "AWS's root does not vouch for it")
    a.out.done("exit 0; without --dev-root, by AWS's root: exit 1")


async def _mention(a: Actor) -> None:
    a.out.step(3, "post a public mention, read the reply note")
    text = f"nostr:{npub(a.instance)} quote {a.image} units={UNITS}"
    a.out.say(f"> {text}")
    note = await a.me.publish(kinds.NOTE, text, [("p", a.instance)])
    reply = await a.me.wait_for(lambda e: e.kind == kinds.NOTE and note.id in e.tag_values("e"))
    root = next(t for t in reply.tags if t[0] == "e")
    _expect(root[3] == "root", "the reply is threaded as NIP-10 says")
    a.out.say(f"< {reply.content}")
    a.out.done("answered in the thread (NIP-10 root)")


async def _deploy(a: Actor) -> tuple[str, str]:
    a.out.step(4, "encrypted RPC deploy (29425): pubkey and bolt11")
    result = await a.me.call(
        a.instance, "deploy", docker=a.image, units=UNITS, name="hello", env={"UNITS": str(UNITS)}
    )
    invoice = str(result["invoice"]["invoice"])
    decoded = decode_invoice_untrusted(invoice)
    a.out.say(f"container {result['npub']}")
    a.out.say(f"{invoice[:60]}…")
    a.out.done(f"invoice over {decoded.amount_msat} msat, network {decoded.currency}")
    return str(result["pubkey"]), invoice


async def _pay(a: Actor, invoice: str) -> None:
    a.out.step(5, "pay the invoice from the payer's wallet over NIP-47")
    paid = await a.wallet.pay(invoice, 0, None)
    _expect(paid.status is PayStatus.SETTLED, f"the payment settles, not {paid}")
    a.out.done(f"preimage {str(paid.preimage)[:16]}…")


async def _see_it_run(a: Actor, pubkey: str) -> None:
    a.out.step(6, "see it announced as deployed, fetch a page")
    event = await _announced(a, pubkey, "deployed")
    address = (event.tag("endpoint") or "").removeprefix("tcp://")
    page = await _fetch_page(f"http://{address}/")
    _expect("It runs" in page, "the page is the app's")
    a.out.say(f"image {event.tag('r')}")
    a.out.done(f"http://{address}/ says {page.partition('<h1>')[2].partition('</h1>')[0]!r}")


async def _zap(a: Actor, pubkey: str) -> None:
    a.out.step(8, "zap the container's profile (LNURL-pay, NIP-57)")
    profile = orjson.loads(
        (await a.me.wait_for(lambda e: e.kind == kinds.PROFILE and e.pubkey == pubkey)).content
    )
    a.out.say(f"lud16 {profile['lud16']}")
    before = (await a.me.call(a.instance, "balance", pubkey=pubkey))["balance_msat"]
    name, _, host = profile["lud16"].partition("@")
    offer = await _get_json(f"http://{host}/.well-known/lnurlp/{name}")
    tags = [("p", pubkey), ("amount", "30000"), ("relays", a.on.relay_url)]
    request = sign_event(a.me.key, kinds.ZAP_REQUEST, "keep running", tags, SystemClock().now())
    query = urlencode({"amount": 30_000, "nostr": request.json.decode()})
    invoice = (await _get_json(f"{offer['callback']}?{query}"))["pr"]
    committed = decode_invoice_untrusted(invoice).description_hash
    _expect(
        committed == hashlib.sha256(request.json).hexdigest(),
        "the invoice commits to the zap request",
    )
    paid = await a.wallet.pay(invoice, 0, None)
    _expect(paid.status is PayStatus.SETTLED, "the zap is paid")
    receipt = await a.me.wait_for(
        lambda e: e.kind == kinds.ZAP_RECEIPT and pubkey in e.tag_values("p")
    )
    after = (await a.me.call(a.instance, "balance", pubkey=pubkey))["balance_msat"]
    _expect(after > before, f"the balance rises ({before} -> {after})")
    _expect(receipt.pubkey == offer["nostrPubkey"], "the receipt is the provider's")
    a.out.say(f"balance {before} -> {after} msat (30000 zapped, metering goes on)")
    a.out.done(f"9735 receipt {receipt.id[:16]}…")


async def _watch_metering(a: Actor, pubkey: str) -> None:
    a.out.step(9, "metering: draw-down, low-balance notice, pause at zero, resume after a top-up")
    seen = []
    for _ in range(3):
        seen.append((await a.me.call(a.instance, "balance", pubkey=pubkey))["balance_msat"])
        await trio.sleep(1)
    _expect(
        seen == sorted(seen, reverse=True) and seen[0] > seen[-1], f"the balance falls: {seen}"
    )
    a.out.say(f"balance {' -> '.join(map(str, seen))} msat")
    low = await _message(a, "little balance left")
    a.out.say(f"private message: {low}")
    paused = await _announced(a, pubkey, "paused")
    a.out.say(f"private message: {await _message(a, 'is paused')}")
    left = (await a.me.call(a.instance, "balance", pubkey=pubkey))["balance_msat"]
    a.out.say(f"announced as paused, {left} msat left (less than the next second costs)")
    result = await a.me.call(a.instance, "topup", pubkey=pubkey, amount_sat=150)
    paid = await a.wallet.pay(result["invoice"]["invoice"], 0, None)
    _expect(paid.status is PayStatus.SETTLED, "the top-up is paid")
    resumed = await _announced(a, pubkey, "deployed", after=paused)
    address = (resumed.tag("endpoint") or "").removeprefix("tcp://")
    _expect("It runs" in await _fetch_page(f"http://{address}/"), "the app answers again")
    a.out.done("topped up by 150 sat: it runs again and answers")


async def _read_logs(a: Actor, pubkey: str) -> None:
    a.out.step(10, "ask for the owner's logs")
    text = str((await a.me.call(a.instance, "logs", pubkey=pubkey, lines=10))["logs"])
    _expect(
        "hello from the sample app" in text and f"units: {UNITS}" in text, "the logs are the app's"
    )
    for line in text.splitlines()[:4]:
        a.out.say(f"| {line}")
    a.out.done(f"{len(text.splitlines())} lines")


async def _stop_and_withdraw(a: Actor, pubkey: str) -> None:
    a.out.step(11, "stop it, withdraw what is left to an invoice")
    asked = await a.me.call(a.instance, "stop", pubkey=pubkey)
    _expect(asked["confirm"], "the first stop asks for confirmation")
    stopped = await a.me.call(a.instance, "stop", pubkey=pubkey)
    _expect(stopped["state"] == "stopped", "the second stop deletes")
    balance = await a.me.call(a.instance, "balance", pubkey=pubkey)
    a.out.say(
        f"stopped with {balance['balance_msat']} msat; {balance['withdrawable_sat']} sat can be withdrawn"
    )
    invoice = await a.wallet.make_own_invoice(balance["withdrawable_sat"] * 1_000, "what is left")
    _expect(isinstance(invoice, Minted), f"the payer's wallet makes an invoice, not {invoice}")
    assert isinstance(invoice, Minted)
    result = await a.me.call(a.instance, "withdraw", pubkey=pubkey, invoice=invoice.bolt11)
    _expect(result["state"] == "settled", f"the withdrawal settles, not {result['state']}")
    received = await a.wallet.look_up(invoice.payment_hash, None)
    a.out.done(
        f"{result['amount_sat']} sat came back; the payer's wallet says {received.state.value}"
    )


async def _restart(a: Actor) -> None:
    a.out.step(
        12, "restart: the same code proves its PCRs and gets its key back, in shares, from escrow"
    )
    await a.on.enclave.stop()
    a.out.say(
        "enclaved and its module are stopped; the key to its identity was in its memory alone"
    )
    await a.on.enclave.start()
    _expect(await a.on.enclave.ready() == a.instance, "it is the same instance")
    a.out.done(f"the same identity again: {npub(a.instance)}")


async def _upgrade_unsigned(a: Actor) -> None:
    a.out.step(13, "another image, unsigned: escrow keeps the key, enclaved halts")
    await a.on.enclave.stop()
    a.on.enclave.image = await trio.to_thread.run_sync(a.on.enclave.changed_image)
    await a.on.enclave.start(signed=False)
    reason = await a.on.enclave.halted()
    await a.on.enclave.stop()
    a.out.done(f"halted: {reason}")


async def _upgrade_signed(a: Actor) -> None:
    a.out.step(14, "the same image, signed by its maintainer: escrow gives the key")
    await a.on.enclave.start(signed=True)
    _expect(await a.on.enclave.ready() == a.instance, "it is the same instance")
    pong = await _call_again(a, "ping")
    _expect(pong == "pong", "it answers")
    a.out.done(f"the same identity under new PCRs: {npub(a.instance)}")


# -- helpers of the steps ---------------------------------------------------------------------------


async def _call_again(a: Actor, method: str) -> object:
    """The relay went down with the instance; our connection comes back by itself."""
    with trio.fail_after(30):
        while True:
            with trio.move_on_after(2):
                try:
                    return await a.me.call(a.instance, method)
                except NoAnswer:
                    await trio.sleep(0.1)


async def _announced(a: Actor, pubkey: str, state: str, after: Event | None = None) -> Event:
    def fits(event: Event) -> bool:
        if event.kind != kinds.CONTAINER or event.pubkey != pubkey or event.tag("state") != state:
            return False
        return after is None or (event.created_at >= after.created_at and event.id != after.id)

    return await a.me.wait_for(fits, 60)


async def _message(a: Actor, words: str) -> str:
    def fits(event: Event) -> bool:
        if event.kind != kinds.GIFT_WRAP:
            return False
        try:
            author, text, _ = nip17.unwrap_message_untrusted(a.me.key, event)
        except BadInput:
            return False
        return author == a.instance and words in text

    event = await a.me.wait_for(fits, 60)
    return nip17.unwrap_message_untrusted(a.me.key, event)[1]


async def _fetch_page(url: str) -> str:
    """The container may have been announced before its server listens."""
    with trio.fail_after(20):
        while True:
            try:
                async with httpcore.AsyncConnectionPool() as pool:
                    response = await pool.request(
                        "GET", url, extensions={"timeout": {"connect": 2, "read": 2}}
                    )
                    return response.content.decode(errors="replace")
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError):
                await trio.sleep(0.05)


async def _get_json(url: str) -> dict[str, Any]:
    async with httpcore.AsyncConnectionPool() as pool:
        answer: dict[str, Any] = orjson.loads((await pool.request("GET", url)).content)
        _expect(answer.get("status") != "ERROR", str(answer.get("reason")))
        return answer


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise Failed(f"expected: {what}")


def _tell_how_to_talk(on: Stack, key: SecretKey, image: str) -> None:
    path = Path(on.state).parent / "client.key"
    path.touch(mode=0o600)
    path.write_text(nsec(key.reveal_secret()))
    uri = path.with_name("payer.uri")
    uri.touch(mode=0o600)
    uri.write_text(on.payer_uri())
    call = f"{REPO}/.venv/bin/enclaved call --relay {on.relay_url} --to {npub(on.instance)} --key {path}"
    say(
        "",
        "It stays up until Ctrl-C. To talk to it:",
        f"  relay     {on.relay_url}",
        f"  instance  {npub(on.instance)}",
        f"  {call} help",
        f"  {call} quote docker={image} units=1",
        f"  {call} deploy docker={image} units=1",
        f"  {call} list",
        f"  payer's wallet, for any NIP-47 client: {uri}",
        f"  logs: {path.parent}/*.log",
    )
