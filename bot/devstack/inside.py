"""DEVELOPMENT ONLY. The dev wallet as an enclave's own: it proves its key from inside of its container.

What is told by the environment: ENCLAVED_ENDPOINT, ENCLAVED_TOKEN, ENCLAVED_WALLET_ADMIN, NWC_RELAYS (one URL),
WALLET_FUND (PUBKEY=SAT). Its books lie in /data.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import trio
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from bot.boot.identity import load_key
from bot.clock import SystemClock
from bot.devstack.wallet import running
from bot.devstack.wallet_book import WalletBook
from nips import kinds
from nips.event import Tag, parse_event_untrusted, sign_event
from nips.keys import SecretKey

DATA = Path("/data")
ANNOUNCE_EVERY_S, RETRY_S = 300, 1


def proof_tags(key: SecretKey, environment: Mapping[str, str]) -> list[Tag]:
    """What leads from the enclave's attestation to this key. Blocking."""
    headers = {"token": environment["ENCLAVED_TOKEN"]}
    with connect(environment["ENCLAVED_ENDPOINT"], additional_headers=headers) as door:
        asked = _call(door, "get_challenge", pubkey=key.pubkey)
        tags = [tuple(tag) for tag in asked["tags"]]
        proof = sign_event(key, kinds.CLIENT_AUTH, "", tags, SystemClock().now())
        given = _call(door, "create_certificate", pubkey=key.pubkey, proof=proof.as_dict())
    root, *certificates = [parse_event_untrusted(e) for e in (given["root"], *given["certs"])]
    return [
        ("tee_root", root.json.decode()),
        *(("tee_cert", certificate.json.decode()) for certificate in certificates),
    ]


def _call(door: ClientConnection, method: str, **params: object) -> dict[str, Any]:
    door.send(orjson.dumps({"id": method, "method": method, "params": params}).decode())
    answer = orjson.loads(door.recv(timeout=30))
    if answer.get("error"):
        raise RuntimeError(f"{method}: {answer['error']}")
    return dict(answer["result"])


async def serve(key: SecretKey, book: WalletBook, environment: Mapping[str, str]) -> None:
    """Until it is killed. Certificates end after some hours, so it announces itself again and again."""
    relay_url, admin = environment["NWC_RELAYS"], environment["ENCLAVED_WALLET_ADMIN"]
    async with running(key, book, relay_url, admin) as service:
        while True:
            try:
                proof = await trio.to_thread.run_sync(proof_tags, key, environment)
            except (OSError, RuntimeError, WebSocketException) as error:
                # The server may be starting.
                print(f"no proof yet: {error}", flush=True)
                await trio.sleep(RETRY_S)
                continue
            await service.announce([("relay", relay_url), *proof])
            print("announced", flush=True)
            await trio.sleep(ANNOUNCE_EVERY_S)


def main() -> None:
    book = WalletBook(DATA / "wallet.sqlite")
    if grant := os.environ.get("WALLET_FUND"):
        pubkey, _, sat = grant.partition("=")
        book.fund(grant, pubkey, int(sat) * 1_000)
    trio.run(serve, load_key(DATA / "wallet.key"), book, os.environ)


if __name__ == "__main__":
    main()
