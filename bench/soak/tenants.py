"""Honest strangers: each has a key, some containers, and does one thing after the other, in an order from a seed."""

import random
from contextlib import aclosing
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

import httpcore
import orjson
import trio

from bench.soak.scene import Scene
from bot.clock import SystemClock
from bot.devstack.image import REPO
from bot.relay.websocket import connect
from bot.tools.client import CallRefused, Client, NoAnswer, open_client
from handlers.domain.ledger import MAIN_WALLET
from handlers.ports import InvoiceWanted, Minted
from nips import kinds, nip01
from nips.bolt11 import decode_invoice_untrusted
from nips.event import sign_event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip19 import npub

MOST_CONTAINERS, PATIENCE_S, VERIFY_EVERY_S = 3, 45, 40
CLOCK = SystemClock()
ACTIONS = {
    "deploy": 8, "topup": 5, "zap": 4, "withdraw": 4, "restart": 3, "stop": 3, "info": 3,
    "logs": 3, "balance": 2, "quote": 2, "mention": 2, "list": 1, "fetch": 2,
}  # fmt: skip
IMAGES = {"behaves": 6, "writes": 2, "stubborn": 1, "crashes": 2, "ends at once": 1}
_HTTP_GONE = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)
_TIMEOUTS = {"timeout": {"connect": 2, "read": 10, "write": 2, "pool": 2}}


@dataclass
class Tenant:
    """``containers``: pubkey to the kind of its image."""

    scene: Scene
    me: Client
    rng: random.Random
    containers: dict[str, str] = field(default_factory=dict)

    async def live(self) -> None:
        """Until cancelled."""
        names, weights = list(ACTIONS), list(ACTIONS.values())
        while True:
            name = self.rng.choices(names, weights)[0] if self.containers else "deploy"
            try:
                with trio.move_on_after(90):
                    await getattr(self, f"_{name}")()
                    self.scene.tally.counts[f"did {name}"] += 1
            except (CallRefused, NoAnswer, *_HTTP_GONE) as error:
                self.scene.tally.counts[
                    f"not {name}: {str(error)[:50] or type(error).__name__}"
                ] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, it is worth a line, and no end
                self.scene.tally.violated(f"a tenant is surprised by {name}: {error!r}")
            await trio.sleep(self.rng.expovariate(1 / self.scene.plan.pause_s))

    async def _call(self, method: str, **params: object) -> dict:
        return await self.scene.call(self.me, method, **params)

    def _one(self) -> str:
        return self.rng.choice(sorted(self.containers))

    def _image(self) -> str:
        return self.rng.choices(list(IMAGES), list(IMAGES.values()))[0]

    async def _pay(self, invoice: dict) -> bool:
        return await self.scene.pay(invoice["invoice"], invoice["payment_hash"])

    # -- what tenants do ----------------------------------------------------------------------------

    async def _quote(self) -> None:
        await self._call("quote", docker=self.scene.images[self._image()], units=1)

    async def _deploy(self) -> None:
        if len(self.containers) >= MOST_CONTAINERS:
            await self._stop()
            return
        kind, units = self._image(), self.rng.randint(1, 2)
        wanted = {"docker": self.scene.images[kind], "units": units}
        if self.rng.random() < 0.3:
            wanted["quote_id"] = (await self._call("quote", **wanted))["quote_id"]
        amount_sat = self.rng.randint(10, 60) * units
        result = await self._call("deploy", amount_sat=amount_sat, env={"UNITS": "1"}, **wanted)
        # Some never pay.
        if self.rng.random() < 0.9 and await self._pay(result["invoice"]):
            self.containers[result["pubkey"]] = kind

    async def _topup(self) -> None:
        result = await self._call("topup", pubkey=self._one(), amount_sat=self.rng.randint(5, 40))
        if self.rng.random() < 0.9:
            await self._pay(result["invoice"])

    async def _zap(self) -> None:
        """By LNURL, as wallets do. Some zap requests name relays that are dead, or never answer."""
        pubkey, amount_msat = self._one(), self.rng.randint(2, 20) * 1_000
        relays = [self.scene.on.relay_url]
        if self.rng.random() < 0.3:
            relays += ["ws://127.0.0.1:9", f"ws://127.0.0.1:{self.scene.drip_port}"]
        tags = [("p", pubkey), ("amount", str(amount_msat)), ("relays", *relays)]
        request = sign_event(self.me.key, kinds.ZAP_REQUEST, "", tags, CLOCK.now())
        base = self.scene.on.public_url
        offer = await _get_json(f"{base}/.well-known/lnurlp/{npub(pubkey)}")
        if "callback" not in offer:
            return
        path = urlsplit(offer["callback"]).path
        query = urlencode({"amount": amount_msat, "nostr": request.json.decode()})
        answer = await _get_json(f"{base}{path}?{query}")
        if "pr" in answer:
            invoice = decode_invoice_untrusted(answer["pr"])
            if await self.scene.pay(invoice.bolt11, invoice.payment_hash):
                self.scene.zaps.add(invoice.bolt11)

    async def _withdraw(self) -> None:
        pubkey = self._one()
        most_sat = (await self._call("balance", pubkey=pubkey))["withdrawable_sat"]
        if most_sat > 1:
            await self._withdraw_from(pubkey, self.rng.randint(1, most_sat))

    async def _withdraw_from(self, pubkey: str, amount_sat: int) -> None:
        life_s = self.scene.plan.withdrawal_s
        wanted = InvoiceWanted("", MAIN_WALLET, amount_sat * 1_000, "mine", None, life_s)
        invoice = await self.scene.wallet.make_invoice(wanted)
        if isinstance(invoice, Minted):
            await self._call("withdraw", pubkey=pubkey, invoice=invoice.bolt11)

    async def _restart(self) -> None:
        await self._call("restart", pubkey=self._one())

    async def _stop(self) -> None:
        pubkey = self._one()
        if self.rng.random() < 0.5:
            await self._call("stop", pubkey=pubkey)
            await self._call("stop", pubkey=pubkey)
        else:
            await self._call("stop", pubkey=pubkey, force=True)
        self.containers.pop(pubkey, None)
        if self.rng.random() < 0.7:
            left = (await self._call("balance", pubkey=pubkey))["withdrawable_sat"]
            if left > 0:
                await self._withdraw_from(pubkey, left)

    async def _info(self) -> None:
        await self._call("info", pubkey=self._one())

    async def _logs(self) -> None:
        await self._call("logs", pubkey=self._one(), lines=50)

    async def _balance(self) -> None:
        await self._call("balance", pubkey=self._one())

    async def _list(self) -> None:
        await self._call("list")

    async def _fetch(self) -> None:
        """The container's own page, when it should be there."""
        told = await self._call("info", pubkey=self._one())
        if told["detail"] == "deployed" and told["endpoints"]:
            address = told["endpoints"][0].removeprefix("tcp://")
            async with httpcore.AsyncConnectionPool() as pool:
                await pool.request("GET", f"http://{address}/", extensions=_TIMEOUTS)
            self.scene.tally.counts["pages fetched"] += 1

    async def _mention(self) -> None:
        instance, image = self.scene.on.instance, self.scene.images["behaves"]
        text = f"nostr:{npub(instance)} quote {image} units=1"
        note = await self.me.publish(kinds.NOTE, text, [("p", instance)])
        self.scene.tally.counts["mentions"] += 1
        await self.me.wait_for(
            lambda e: e.kind == kinds.NOTE and note.id in e.tag_values("e"), PATIENCE_S
        )
        self.scene.tally.counts["mentions answered"] += 1


async def live(scene: Scene, number: int) -> None:
    """One tenant, from key to end."""
    rng = random.Random(f"{scene.plan.seed} {number}")
    async with open_client(SecretKey.generate(), [scene.on.relay_url]) as me:
        me.watch(Filter(kinds=frozenset({kinds.NOTE}), authors=frozenset({scene.on.instance})))
        await Tenant(scene, me, rng).live()


async def verify_now_and_then(scene: Scene) -> None:
    """Whether the instance is what it says, as anybody can find out; twice wrong while it is up is wrong."""
    people = scene.on.enclave.people
    command = [str(REPO / ".venv/bin/enclaved"), "verify", npub(scene.on.instance)]
    command += ["--relay", scene.on.relay_url, "--dev-root", str(scene.on.enclave.root)]
    command += ["--repo", people.repo, "--maintainer", npub(people.maintainer.pubkey)]
    wrong = 0
    while True:
        await trio.sleep(VERIFY_EVERY_S if wrong == 0 else 5)
        began = trio.current_time()
        done = await trio.run_process(command, capture_stdout=True, check=False)
        valid, up = done.returncode == 0, not scene.outages.touches(began, trio.current_time())
        if valid or up:
            scene.tally.counts["verified" if valid else "not verified while up"] += 1
            wrong = 0 if valid else wrong + 1
        if wrong == 2:
            scene.tally.violated(f"the instance is not verified: {done.stdout.decode()[-600:]}")


async def missing_receipts(scene: Scene) -> int:
    """How many zaps were paid of which the relay holds no receipt."""
    ours = Filter(
        kinds=frozenset({kinds.ZAP_RECEIPT}), authors=frozenset({scene.on.instance}), limit=500
    )
    seen: set[str] = set()
    async with (
        connect(scene.on.relay_url, max_message_bytes=1 << 20, max_queued_bytes=1 << 20) as ws,
        trio.open_nursery() as nursery,
        aclosing(ws.messages()) as frames,
    ):
        nursery.start_soon(ws.run_writer)
        ws.send(nip01.encode_req("receipts", [ours]))
        async for text in frames:
            message = nip01.decode_relay_untrusted(text)
            if not isinstance(message, nip01.EventMessage):
                break
            seen.add(message.event.tag("bolt11") or "")
        nursery.cancel_scope.cancel()
    return len(scene.zaps - seen) if len(seen) < 500 else 0


async def last_job(scene: Scene) -> None:
    """After everything: a newcomer deploys, pays, sees it run, stops it, and takes his money home."""
    async with open_client(SecretKey.generate(), [scene.on.relay_url]) as me:
        result = await scene.call(
            me, "deploy", docker=scene.images["behaves"], units=1, amount_sat=60
        )
        pubkey, invoice = result["pubkey"], result["invoice"]
        if not await scene.pay(invoice["invoice"], invoice["payment_hash"]):
            raise NoAnswer("the last payment does not go through")
        with trio.fail_after(60):
            while (await scene.call(me, "info", pubkey=pubkey))["detail"] != "deployed":
                await trio.sleep(0.5)
        await scene.call(me, "stop", pubkey=pubkey, force=True)
        left = (await scene.call(me, "balance", pubkey=pubkey))["withdrawable_sat"]
        wanted = InvoiceWanted("", MAIN_WALLET, left * 1_000, "mine", None, 600)
        minted = await scene.wallet.make_invoice(wanted)
        if not isinstance(minted, Minted):
            raise NoAnswer(f"the payer's wallet makes no invoice: {minted}")
        told = await scene.call(me, "withdraw", pubkey=pubkey, invoice=minted.bolt11)
        if told["state"] != "settled":
            raise NoAnswer(f"the last withdrawal is {told['state']}")


async def _get_json(url: str) -> dict:
    async with httpcore.AsyncConnectionPool() as pool:
        return orjson.loads((await pool.request("GET", url, extensions=_TIMEOUTS)).content)
