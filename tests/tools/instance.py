"""An instance in an enclave, with a relay on a real port before it: what `verify` is asked about."""

from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from bot.adapters.relay_events import RelayEvents
from bot.relay.server import RelayServer
from bot.server.doors import rpc
from bot.tools.verify import Question, verify
from handlers.duties.announce import announce_containers, instance_events
from handlers.proof import Proof
from nips import kinds
from nips.event import parse_event_json_untrusted
from nips.nip19 import Pointer
from nips.rpc import build_reply, open_request_untrusted
from nips.tee.env import Env
from nips.tee.policies import DebugPolicy
from tests.evidence import HARDWARE, NOW, Enclave


class HomeAttester:
    """Attests under the tests' hardware, as AWS would."""

    def __init__(self, enclave):
        self.enclave = enclave

    async def document(self, *, public_key, nonce=None, user_data=None):
        return HARDWARE.document(public_key, self.enclave.pcrs, nonce=nonce)


def proved(world, env=Env.PROD):
    """The world's server, living in an enclave."""
    enclave = Enclave(env=env, key=world.ctx.key)
    proof = Proof(
        world.ctx.key, HomeAttester(enclave), enclave.verifier, enclave.signatures(), env
    )
    presence = replace(world.ctx.presence, repo=enclave.repo)
    world.ctx = replace(world.ctx, proof=proof, presence=presence)
    return enclave


@asynccontextmanager
async def relay_of(world, *, answers=True, tamper=None):
    """A relay on a real port, with the instance behind it."""
    server = RelayServer(world.clock, name="t", pubkey=None)
    async with trio.open_nursery() as nursery:

        async def answer(event):
            reply = await rpc.answer(world.ctx, event)
            server.publish(tamper(event, reply) if tamper else reply)

        def listener(event):
            if (
                answers
                and event.kind == kinds.RPC
                and world.ctx.key.pubkey in event.tag_values("p")
            ):
                nursery.start_soon(answer, event)

        server.listen(listener)
        port = await nursery.start(server.serve, "127.0.0.1", 0)
        for event in (await instance_events(world.ctx))[0]:
            server.publish(event)
        await publish_containers(world, server)
        yield server, f"ws://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


async def publish_containers(world, server):
    await announce_containers(world.ctx)
    for item in await world.store.read(lambda tx: tx.outbox.list_due(world.clock.now(), 100)):
        server.publish(parse_event_json_untrusted(item.body))


@asynccontextmanager
async def relay_holding(world, *events):
    """A relay that keeps what it has, whatever happened since; no instance listens there."""
    server = RelayServer(world.clock, name="old", pubkey=None)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(server.serve, "127.0.0.1", 0)
        for event in events:
            server.publish(event)
        yield f"ws://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


async def ask(world, *urls, policies=None, verifier=None, own=(), **options):
    """`verify` over these relays, for ``pubkey`` or ``event_id``; ``own``: relays on this machine that may come up."""
    pointer = Pointer(options.pop("pubkey", None), options.pop("event_id", None), ())
    question = Question(
        pointer, urls, verifier or HARDWARE.verifier, world.clock.now(),
        tuple(policies or [DebugPolicy()]), **options,
    )  # fmt: skip
    return await verify(question, RelayEvents([*urls, *own]))


def answering(world, change):
    """Every challenge is answered with what ``change`` makes of its nonce."""

    def tamper(request_event, reply):
        request = open_request_untrusted(world.ctx.key, request_event)
        told = change(bytes.fromhex(request.params["nonce"]))
        return build_reply(world.ctx.key, request_event, replace(told, rpc_id=request.rpc_id), NOW)

    return tamper
