"""The other side of the comparison: the same ping server with nostr-sdk's client on nostr-sdk's LocalRelay.

``python -m bench.sdk_server relay`` and ``… server URL``, each a process: it prints a line when it is ready, and
runs until it is killed (its orderly exit is not what is measured).
"""

import asyncio
import json
import sys
from datetime import timedelta

from nostr_sdk import (
    AckPolicy,
    Client,
    ClientBuilder,
    EventBuilder,
    Filter,
    Keys,
    Kind,
    LocalRelayBuilder,
    RateLimit,
    RelayUrl,
    ReqTarget,
    Tag,
    Timestamp,
    uniffi_set_event_loop,
)

RPC = 29425


async def relay() -> None:
    uniffi_set_event_loop(asyncio.get_running_loop())
    limit = RateLimit(max_reqs=5_000, notes_per_minute=2**32 - 1)
    made = LocalRelayBuilder().addr("127.0.0.1").rate_limit(limit).max_connections(1_000).build()
    await made.run()
    print(json.dumps({"url": str(await made.url())}), flush=True)
    await asyncio.Event().wait()


async def server(url: str) -> None:
    uniffi_set_event_loop(asyncio.get_running_loop())
    keys = Keys.generate()
    client: Client = ClientBuilder().notification_channel_size(65_536).build()
    await client.add_relay(RelayUrl.parse(url))
    await client.connect(and_wait=timedelta(seconds=5))
    stream = client.notifications()
    wanted = Filter().kind(Kind(RPC)).pubkey(keys.public_key()).since(Timestamp.now())
    await client.subscribe(ReqTarget.auto([wanted]), id="rpc")
    await asyncio.sleep(0.5)
    print(json.dumps({"pubkey": keys.public_key().to_hex()}), flush=True)
    while (item := await stream.next()) is not None:
        if not item.is_new_event():
            continue
        event = item.event
        if not event.verify():
            continue
        caller = event.author()
        request = json.loads(keys.nip44_decrypt(caller, event.content()))
        content = keys.nip44_encrypt(caller, json.dumps({"id": request["id"], "result": "pong"}))
        tags = [Tag.parse(["p", caller.to_hex()]), Tag.parse(["e", event.id().to_hex()])]
        reply = EventBuilder(Kind(RPC), content).tags(tags).finalize(keys)
        await client.send_event(reply, ack_policy=AckPolicy.none())


if __name__ == "__main__":
    asyncio.run(relay() if sys.argv[1] == "relay" else server(sys.argv[2]))
