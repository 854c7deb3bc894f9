"""The instance's own wallet: nobody is believed who cannot show that he lives in that very container."""

from dataclasses import replace

import pytest

from bot.server.doors.container import ContainerDoor
from bot.server.own_wallet import OwnWallet
from handlers.alarms import Alarm
from handlers.context import Builtin
from handlers.domain.image import parse_image_ref
from handlers.duties.announce import instance_events
from handlers.duties.builtins import find_own
from handlers.duties.own_wallet import find_own_wallet, wallet_client
from nips import kinds
from nips.event import parse_event_untrusted, sign_event
from nips.keys import SecretKey
from nips.nip47 import WalletUri
from tests.evidence import NOW
from tests.handlers.test_certify import ENDPOINT, call, proof_of
from tests.tools.instance import proved

RELAY = "wss://relay.example.com"
WALLET = Builtin("wallet", parse_image_ref(f"example.com/wallet@sha256:{'ab' * 32}"), 4)


@pytest.fixture
async def home(world):
    """An enclave whose wallet is a container of its own, and runs."""
    proved(world)
    capacity = replace(world.ctx.policy.capacity, total_units=10 + WALLET.units)
    presence = replace(world.ctx.presence, container_endpoint=ENDPOINT, relay_urls=(RELAY,))
    world.ctx = replace(
        world.ctx, builtins=(WALLET,), own_wallet="wallet", presence=presence,
        policy=replace(world.ctx.policy, capacity=capacity),
    )  # fmt: skip
    await world.turn()
    world.ctx.events.relays[RELAY] = []
    return world


async def own_row(home):
    return await home.store.read(find_own, home.ctx.key.pubkey, "wallet")


async def announced(home, container, app, *, relays=(RELAY,), signer=None, drop=0):
    """The app proves itself from inside of a container, and tells the relay."""
    door = ContainerDoor(home.ctx)
    proof = await proof_of(door, container, app)
    given = await call(door, container, "create_certificate", pubkey=app.pubkey, proof=proof)
    certs = [parse_event_untrusted(e).json.decode() for e in given["certs"]]
    tags = [
        ("tee_root", parse_event_untrusted(given["root"]).json.decode()),
        *(("tee_cert", each) for each in certs[: len(certs) - drop]),
        *(("relay", url) for url in relays),
    ]
    event = sign_event(signer or app, kinds.WALLET_SERVICE, "", tags, NOW)
    home.ctx.events.relays[RELAY].append(event)


async def test_it_is_found_by_what_it_proves_and_told_whose_it_is(home):
    app = SecretKey.generate()
    assert "has proven no key" in await find_own_wallet(home.ctx, "wallet")
    await announced(home, (await own_row(home)).pubkey, app)
    found = await find_own_wallet(home.ctx, "wallet")
    assert WalletUri(app.pubkey, (RELAY,), wallet_client(home.ctx.key)) == found
    home.wallet.service_pubkey = app.pubkey
    for own, whose in (("wallet", "enclave"), (None, "operator")):
        events, _ = await instance_events(replace(home.ctx, own_wallet=own))
        assert ("wallet", app.pubkey, whose) in events[0].tags
    home.wallet.service_pubkey = None
    events, _ = await instance_events(home.ctx)
    assert None is events[0].tag("wallet")


async def test_only_the_wallet_is_told_who_may_admit_others(home):
    pubkey = await home.deployed()
    told = wallet_client(home.ctx.key).pubkey
    assert told != home.ctx.key.pubkey
    env = {key: at["spec"].env for key, at in home.engine.containers.items()}
    assert told == env[(await own_row(home)).pubkey]["ENCLAVED_WALLET_ADMIN"]
    assert "ENCLAVED_WALLET_ADMIN" not in env[pubkey]


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("silent", "on no relay of ours"),
        ("a tenant's container", "on no relay of ours"),
        ("without the last certificate", "ends in another key"),
        ("no relay", "names no relay"),
        ("many relays", "more than 4"),
        ("no URL", "ws://"),
        ("another image", "another image"),
        ("another instance", "another instance"),
    ],
)
async def test_who_cannot_show_that_he_is_it_gets_no_money(home, how, why):
    app, container = SecretKey.generate(), (await own_row(home)).pubkey
    match how:
        case "silent":
            await announced(home, container, app)
            home.ctx.events.relays[RELAY].clear()
        case "a tenant's container":
            tenant = await home.deployed()
            await announced(home, tenant, SecretKey.generate())
            await announced(home, container, app)
            home.ctx.events.relays[RELAY].pop()
        case "without the last certificate":
            await announced(home, container, app, drop=1)
        case "no relay":
            await announced(home, container, app, relays=())
        case "many relays":
            await announced(home, container, app, relays=[RELAY] * 5)
        case "no URL":
            await announced(home, container, app, relays=["https://example.com"])
        case "another image":
            await announced(home, container, app)
            await home.store.write(
                lambda tx: tx.containers.save(
                    replace(tx.containers.find(container), image=f"x@sha256:{'cd' * 32}")
                )
            )
        case "another instance":
            await announced(home, container, app)
            before = home.ctx.key
            proved(home)
            if home.ctx.key == before:
                home.ctx.proof._key = SecretKey.generate()
    found = await find_own_wallet(home.ctx, "wallet")
    assert isinstance(found, str)
    assert why in found


async def test_a_wallet_that_comes_back_with_another_key_stops_the_money(home):
    """It lost its books: what is owed from the former ones cannot be paid."""
    container, first = (await own_row(home)).pubkey, SecretKey.generate()
    own = OwnWallet("wallet", home.ctx.key, None)
    await announced(home, container, first)
    await own.once(home.ctx)
    assert first.pubkey == (await own.where.find()).wallet_pubkey
    await own.once(home.ctx)
    assert Alarm.WALLET not in home.ctx.alarms.raised
    await announced(home, container, SecretKey.generate())
    await own.once(home.ctx)
    assert home.ctx.alarms.no_invoices_because == Alarm.WALLET.value
    assert first.pubkey in home.ctx.alarms.raised[Alarm.WALLET]
