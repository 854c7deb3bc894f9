"""A load of RPC pings on one relay, from a process of its own: ``python -m bench.rpc_load URL NPUB CLIENTS SECONDS``.

Prints JSON: requests per second, and the latencies' p50 and p99 in ms. Closed loop: every client asks again as soon
as it is answered. One websocket per client, websockets' own synchronous client in threads would cost
more than what is measured, so it is our own connection.
"""

import json
import sys
from contextlib import aclosing

import trio

from bot.clock import SystemClock
from bot.relay.websocket import connect
from nips import kinds, nip01
from nips.event import Event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.rpc import RpcRequest, build_request, open_reply_untrusted


class Load:
    """Requests are made before the clock starts, and answers only matched by their ``e`` tag (the last one
    is opened): what is measured is the server, not this process."""

    def __init__(self, url: str, service: str, seconds: float) -> None:
        self.url, self.service, self.seconds = url, service, seconds
        self.latencies: list[float] = []
        self.now = SystemClock().now()

    def requests(self, key: SecretKey, count: int) -> list[Event]:
        return [
            build_request(key, kinds.RPC, self.service, RpcRequest(str(n), "ping", {}), self.now)
            for n in range(count)
        ]

    async def client(self, count: int, started: trio.Event, ready: trio.Event) -> None:
        key = SecretKey.generate()
        requests = self.requests(key, count)
        async with (
            connect(self.url, max_message_bytes=1 << 20, max_queued_bytes=1 << 22) as ws,
            trio.open_nursery() as nursery,
            aclosing(ws.messages()) as answers,
        ):
            nursery.start_soon(ws.run_writer)
            mine = Filter(kinds=frozenset({kinds.RPC}), tags={"p": frozenset({key.pubkey})})
            ws.send(nip01.encode_req("r", [mine]))
            await anext(answers)
            ready.set()
            await started.wait()
            await self._ask_all(ws, answers, requests, key)
            nursery.cancel_scope.cancel()

    async def _ask_all(self, ws, answers, requests, key) -> None:
        end, frame = trio.current_time() + self.seconds, b""
        for request in requests:
            asked = trio.current_time()
            if asked > end:
                break
            ws.send(nip01.encode_publish(request))
            with trio.move_on_after(5) as scope:
                frame = await self._answer(answers, request.id.encode())
            if scope.cancelled_caught:
                return
            self.latencies.append((trio.current_time() - asked) * 1_000)
        message = nip01.decode_relay_untrusted(frame)
        assert isinstance(message, nip01.EventMessage)
        assert open_reply_untrusted(key, message.event).result == "pong"

    async def _answer(self, answers, request_id: bytes) -> bytes:
        async for frame in answers:
            if frame.startswith(b'["EVENT"') and request_id in frame:
                return frame
        raise RuntimeError("the relay closed the connection")

    async def run(self, clients: int) -> dict[str, float]:
        started, waits = trio.Event(), [trio.Event() for _ in range(clients)]
        async with trio.open_nursery() as nursery:
            for ready in waits:
                nursery.start_soon(self.client, max(400, 8_000 // clients), started, ready)
            for ready in waits:
                await ready.wait()
            began = trio.current_time()
            started.set()
        took = trio.current_time() - began
        ordered = sorted(self.latencies)
        return {
            "count": len(ordered),
            "per_s": len(ordered) / took,
            "p50_ms": ordered[len(ordered) // 2],
            "p99_ms": ordered[len(ordered) * 99 // 100],
        }


def main() -> None:
    url, service, clients, seconds = sys.argv[1:5]
    print(json.dumps(trio.run(Load(url, service, float(seconds)).run, int(clients))))


if __name__ == "__main__":
    main()
